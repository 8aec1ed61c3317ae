"""Bringing pictures of any shape to one size: antialiased resize, crop or pad, horizontal flip."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sfumato.rng import generator

Pixels = NDArray[np.uint8]

_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Framing:
    """Two steps from a decoded picture to (3, H, W): `prepare`, free of chance and worth keeping, then `finish`.

    resize "crop" scales the picture to cover the frame and cuts off the rest; "pad" scales it to fit inside and fills
    up with the background. crop "random" (only with resize "crop") and flip take effect where a seed is given.
    """

    size: tuple[int, int]
    resize: Literal["crop", "pad"] = "crop"
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    filter: Literal["lanczos", "bicubic"] = "lanczos"
    background: tuple[int, int, int] = (255, 255, 255)

    @property
    def random_crop(self) -> bool:
        return self.resize == "crop" and self.crop == "random"

    def prepared_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the prepared picture: the frame, or what covers it if the crop is random."""
        if self.random_crop:
            return _scaled(height, width, self.size, cover=True)
        return self.size

    def prepare(self, image: Image.Image) -> Pixels:
        """RGB picture -> uint8 (3, h, w): resized and padded or, unless the crop is random, cropped at the centre."""
        H, W = self.size
        h, w = _scaled(image.height, image.width, self.size, cover=self.resize == "crop")
        if (image.height, image.width) != (h, w):
            image = image.resize((w, h), _FILTERS[self.filter], reducing_gap=3.0)
        if self.resize == "pad":
            frame = Image.new("RGB", (W, H), self.background)
            frame.paste(image, ((W - w) // 2, (H - h) // 2))
            image = frame
        elif self.crop == "center" and (h, w) != (H, W):
            left, top = (w - W) // 2, (h - H) // 2
            image = image.crop((left, top, left + W, top + H))
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def finish(self, pixels: Pixels, seed: int | None) -> Pixels:
        """Prepared (3, h, w) -> (3, H, W): the seed's random crop and flip; without a seed the centre, not flipped."""
        H, W = self.size
        _, h, w = pixels.shape
        u, v, f = (0.5, 0.5, 1.0) if seed is None else _draws(seed)
        if (h, w) != (H, W):
            top = (h - H) // 2 if seed is None else int(u * (h - H + 1))
            left = (w - W) // 2 if seed is None else int(v * (w - W + 1))
            pixels = pixels[:, top : top + H, left : left + W]
        if self.flip and f < 0.5:
            pixels = pixels[:, :, ::-1]
        return pixels


def flips(seed: int) -> bool:
    """Whether the seed's variant is mirrored: the same answer for pictures and for their cached latents."""
    return _draws(seed)[2] < 0.5


def _draws(seed: int) -> tuple[float, float, float]:
    """Always three numbers, so that the flip does not depend on whether the crop is random."""
    u, v, f = torch.rand(3, generator=generator(seed, "variant"), dtype=torch.float64).tolist()
    return u, v, f


def _scaled(height: int, width: int, size: tuple[int, int], cover: bool) -> tuple[int, int]:
    """(h, w) of the picture scaled to cover, or to fit into, the frame; one side is exact, the other rounded."""
    H, W = size
    # compares H / height with W / width in integers, so a picture of the frame's shape matches on both sides
    by_height = (H * width >= W * height) == cover
    if by_height:
        w = round(width * H / height)
        return H, max(W, w) if cover else min(W, max(1, w))
    h = round(height * W / width)
    return max(H, h) if cover else min(H, max(1, h)), W
