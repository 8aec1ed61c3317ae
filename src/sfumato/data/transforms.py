"""Resizing images of any shape to one size: antialiased resize, crop or pad, horizontal flip.

Label maps and boxes are transformed with their image: maps by nearest neighbour, boxes by arithmetic.
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
"""(N, 4): x, y, width, height, as fractions of the image's width and height."""

Scalar = TypeVar("Scalar", bound=np.generic)

_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}


LONGEST = 8
"""The longest image, in frames: of longer ones only the middle is used, for random crops too, and only that is resized,
so that an image of 1 x 2000 pixels takes the memory of a frame."""


@dataclass(frozen=True)
class _Plan:
    """An image's size (h, w) once scaled, and the top left corner and the size of the part that is kept."""

    scaled: tuple[int, int]
    start: tuple[int, int]
    kept: tuple[int, int]


@dataclass(frozen=True)
class Framing:
    """Two steps from a decoded image to (3, H, W): `prepare`, deterministic and worth caching, then `finish`.

    resize "crop" scales the image to cover the frame and cuts off the rest; "pad" scales it to fit inside and fills
    up with the background. crop "random" (only with resize "crop") and flip take effect if a seed is given.
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
        """(h, w) of the prepared image: the frame, or what covers it if the crop is random."""
        return self.size if self.resize == "pad" else self._plan(height, width).kept

    def prepare(self, image: Image.Image, size: tuple[int, int] | None = None) -> Pixels:
        """RGB image -> uint8 (3, h, w): resized and padded or, unless the crop is random, cropped at the centre.

        `size` (H, W) is that of the file where the image was decoded at reduced scale: it alone determines what is
        kept, so that a label map is cropped in the same way.
        """
        H, W = self.size
        plan = self._plan(*(size or (image.height, image.width)))
        image = _resampled(image, plan, _FILTERS[self.filter], self.size)
        if self.resize == "pad":
            frame = Image.new("RGB", (W, H), self.background)
            frame.paste(image, ((W - image.width) // 2, (H - image.height) // 2))
            image = frame
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def prepare_map(self, ids: Ids, void: int) -> Ids:
        """Label map (H, W) of an image's size -> (1, h, w) as `prepare` makes of the image; padding is `void`."""
        H, W = self.size
        height, width = ids.shape
        plan = self._plan(height, width)
        (h, w), (top, left), (kept_h, kept_w) = plan.scaled, plan.start, plan.kept
        rows = ((np.arange(top, top + kept_h) + 0.5) * (height / h)).astype(np.intp)
        columns = ((np.arange(left, left + kept_w) + 0.5) * (width / w)).astype(np.intp)
        ids = ids[rows[:, None], columns]
        if self.resize == "pad":
            frame = np.full(self.size, void, ids.dtype)
            top, left = (H - h) // 2, (W - w) // 2
            frame[top : top + h, left : left + w] = ids
            ids = frame
        return np.ascontiguousarray(ids)[None]

    def _plan(self, height: int, width: int) -> "_Plan":
        """The scaled size of an image of (height, width), and the part of it that `prepare` keeps."""
        H, W = self.size
        h, w = _scaled(height, width, self.size, cover=self.resize == "crop")
        kept = (h, w)
        if self.resize == "crop" and self.crop == "center":
            kept = self.size
        elif self.resize == "crop":
            kept = (min(h, LONGEST * H), min(w, LONGEST * W))
        return _Plan((h, w), ((h - kept[0]) // 2, (w - kept[1]) // 2), kept)

    def finish(self, pixels: NDArray[Scalar], seed: int | None) -> NDArray[Scalar]:
        """Prepared (C, h, w) -> (C, H, W): the seed's random crop and flip; without a seed the centre, not flipped."""
        H, W = self.size
        top, left, mirrored = self._cut(pixels.shape[1], pixels.shape[2], seed)
        pixels = pixels[:, top : top + H, left : left + W]
        return pixels[:, :, ::-1] if mirrored else pixels

    def frame_boxes(self, boxes: Boxes, height: int, width: int, seed: int | None) -> Boxes:
        """Boxes of an image of (height, width) -> boxes of the cropped one, as `prepare` and `finish` place it.

        They are not clipped: parts that were cropped off are outside [0, 1].
        """
        H, W = self.size
        plan = self._plan(height, width)
        h, w = plan.scaled
        if self.random_crop:
            top, left, mirrored = self._cut(*plan.kept, seed)
            top, left = top + plan.start[0], left + plan.start[1]
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
        u, v, f = _random_numbers(seed)
        return int(u * (h - H + 1)), int(v * (w - W + 1)), self.flip and f < 0.5


def _resampled(image: Image.Image, plan: _Plan, filter: Image.Resampling, frame: tuple[int, int]) -> Image.Image:
    """The kept part of the scaled image: resized as a whole and cropped, or cropped first if the image is very long."""
    (h, w), (top, left), (kept_h, kept_w) = plan.scaled, plan.start, plan.kept
    if h > LONGEST * frame[0] or w > LONGEST * frame[1]:
        across, down = image.width / w, image.height / h
        return _resized_part(
            image, (left * across, top * down, (left + kept_w) * across, (top + kept_h) * down), plan.kept, filter
        )
    if (image.height, image.width) != (h, w):
        image = image.resize((w, h), filter, reducing_gap=3.0)
    if plan.kept == plan.scaled:
        return image
    return image.crop((left, top, left + kept_w, top + kept_h))


def _resized_part(
    image: Image.Image,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    filter: Image.Resampling,
) -> Image.Image:
    """The part `box` (left, top, right, bottom) of the image, resized to (H, W), with the pixels around it."""
    left, top, right, bottom = box
    # Pillow's filters reach 3 pixels, of the image or of the result, and reducing first adds a little
    reach_x, reach_y = 4 * max(1.0, (right - left) / size[1]) + 4, 4 * max(1.0, (bottom - top) / size[0]) + 4
    x, y = max(0, int(left - reach_x)), max(0, int(top - reach_y))
    near = image.crop((x, y, min(image.width, int(right + reach_x) + 1), min(image.height, int(bottom + reach_y) + 1)))
    place = (left - x, top - y, min(right - x, near.width), min(bottom - y, near.height))
    return near.resize((size[1], size[0]), filter, place, reducing_gap=3.0)


def clip_boxes(boxes: Boxes, least: float) -> tuple[Boxes, NDArray[np.bool_]]:
    """Boxes cut to [0, 1], and which (N,) of them keep at least the share `least` of their area, and any of it."""
    start = boxes[:, :2].clip(0, 1)
    end = (boxes[:, :2] + boxes[:, 2:]).clip(0, 1)
    extent = end - start
    area, before = extent.prod(1), boxes[:, 2:].prod(1)
    kept = (area > 0) & (area >= least * before * (1 - 1e-9))
    return np.concatenate([start, extent], 1), kept


def flips(seed: int) -> bool:
    """Whether the seed's variant is mirrored: the same answer for images and for their cached latents."""
    return _random_numbers(seed)[2] < 0.5


def _random_numbers(seed: int) -> tuple[float, float, float]:
    """Always three numbers, so that the flip does not depend on whether the crop is random."""
    u, v, f = torch.rand(3, generator=generator(seed, "variant"), dtype=torch.float64).tolist()
    return u, v, f


def _scaled(height: int, width: int, size: tuple[int, int], cover: bool) -> tuple[int, int]:
    """(h, w) of the image scaled to cover, or to fit into, the frame; one side is exact, the other rounded."""
    H, W = size
    # compares H / height with W / width in integers, so an image of the frame's shape matches on both sides
    by_height = (H * width >= W * height) == cover
    if by_height:
        w = round(width * H / height)
        return H, max(W, w) if cover else min(W, max(1, w))
    h = round(height * W / width)
    return max(H, h) if cover else min(H, max(1, h)), W
