"""Bringing pictures of any shape to one size: antialiased resize, crop or pad, horizontal flip.

Label maps and boxes go the same way as their picture: maps by nearest neighbour, boxes by arithmetic.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sfumato.rng import generator

Pixels = NDArray[np.uint8]
Ids = NDArray[np.integer[Any]]
Boxes = NDArray[np.float64]
"""(N, 4): x, y, width, height, as fractions of the picture's width and height."""

Scalar = TypeVar("Scalar", bound=np.generic)

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

    def prepare_map(self, ids: Ids, void: int) -> Ids:
        """Label map (H, W) of a picture's size -> (1, h, w) as `prepare` makes of the picture; padding is `void`."""
        H, W = self.size
        height, width = ids.shape
        h, w = _scaled(height, width, self.size, cover=self.resize == "crop")
        rows = ((np.arange(h) + 0.5) * (height / h)).astype(np.intp)
        columns = ((np.arange(w) + 0.5) * (width / w)).astype(np.intp)
        ids = ids[rows[:, None], columns]
        if self.resize == "pad":
            frame = np.full(self.size, void, ids.dtype)
            top, left = (H - h) // 2, (W - w) // 2
            frame[top : top + h, left : left + w] = ids
            ids = frame
        elif self.crop == "center":
            top, left = (h - H) // 2, (w - W) // 2
            ids = ids[top : top + H, left : left + W]
        return np.ascontiguousarray(ids)[None]

    def finish(self, pixels: NDArray[Scalar], seed: int | None) -> NDArray[Scalar]:
        """Prepared (C, h, w) -> (C, H, W): the seed's random crop and flip; without a seed the centre, not flipped."""
        H, W = self.size
        top, left, mirrored = self._cut(pixels.shape[1], pixels.shape[2], seed)
        pixels = pixels[:, top : top + H, left : left + W]
        return pixels[:, :, ::-1] if mirrored else pixels

    def frame_boxes(self, boxes: Boxes, height: int, width: int, seed: int | None) -> Boxes:
        """Boxes of a picture of (height, width) -> boxes of the framed one, as `prepare` and `finish` place it.

        They are not clipped: what was cut off lies outside [0, 1].
        """
        H, W = self.size
        h, w = _scaled(height, width, self.size, cover=self.resize == "crop")
        if self.random_crop:
            top, left, mirrored = self._cut(h, w, seed)
        else:
            top, left = ((h - H) // 2, (w - W) // 2) if self.resize == "crop" else (-((H - h) // 2), -((W - w) // 2))
            mirrored = self._cut(H, W, seed)[2]
        x, y, across, down = boxes.T
        x, across = (x * w - left) / W, across * w / W
        y, down = (y * h - top) / H, down * h / H
        return np.stack([1 - x - across if mirrored else x, y, across, down], 1)

    def _cut(self, h: int, w: int, seed: int | None) -> tuple[int, int, bool]:
        """Top, left and mirroring of the seed's variant of a prepared (h, w)."""
        H, W = self.size
        if seed is None:
            return (h - H) // 2, (w - W) // 2, False
        u, v, f = _draws(seed)
        return int(u * (h - H + 1)), int(v * (w - W + 1)), self.flip and f < 0.5


def clip_boxes(boxes: Boxes, least: float) -> tuple[Boxes, NDArray[np.bool_]]:
    """Boxes cut to [0, 1], and which (N,) of them keep at least the share `least` of their area, and any of it."""
    start = boxes[:, :2].clip(0, 1)
    end = (boxes[:, :2] + boxes[:, 2:]).clip(0, 1)
    extent = end - start
    area, before = extent.prod(1), boxes[:, 2:].prod(1)
    kept = (area > 0) & (area >= least * before * (1 - 1e-9))
    return np.concatenate([start, extent], 1), kept


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
