"""Aspect-ratio buckets: several sizes of about one area, to the nearest of which each image is cropped."""

import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from sfumato.data.dataset import Buckets
from sfumato.schema import Schema

Size = tuple[int, int]
"""(H, W)"""


class BucketsConfig(Schema):
    """Sizes of about the area of `data.size`, whose sides are multiples of `step`: each image is cropped to the size of
    the nearest shape, and a batch holds images of one size."""

    step: int = Field(64, ge=1, le=65536)
    """A multiple of f times the factor of the denoiser's levels: 2 to the power of its levels less one."""
    ratio: float = Field(2.0, gt=1, le=8)
    """The longest size's long side divided by its short one; images beyond that are cropped to it."""


def bucket_sizes(size: Size, config: BucketsConfig) -> tuple[Size, ...]:
    """The sizes, from wide to high; `size` is one of them.

    For every short side the long side is the multiple of the step with which the area is nearest to that of `size`.
    """
    area, step = size[0] * size[1], config.step
    found = {size}
    for short in range(step, math.isqrt(area) + 1, step):
        long = round(area / short / step) * step
        if long <= config.ratio * short:
            found |= {(short, long), (long, short)}
    return tuple(sorted(found, key=lambda one: (one[0] / one[1], one)))


def nearest(sizes: Sequence[Size], images: Sequence[Size]) -> Buckets:
    """The bucket of each image (H, W): the one whose ratio of sides differs by the smallest factor."""
    ratios = np.log([h / w for h, w in sizes])
    own = np.log([h / w for h, w in images]) if images else np.zeros(0)
    rows = np.concatenate(
        [np.abs(part[:, None] - ratios).argmin(1) for part in np.array_split(own, len(own) // 4096 + 1)]
    )
    return Buckets(tuple(sizes), rows.astype(np.int64))


def cropped_away(image: Size, size: Size) -> float:
    """The share of an image (H, W) that is lost where it is scaled to cover `size`."""
    ratio = image[0] * size[1] / (image[1] * size[0])
    return 1 - min(ratio, 1 / ratio)


def described_buckets(buckets: Buckets) -> str:
    """A sentence with the images of each bucket, and which sizes are in none."""
    held = [f"{h}x{w} {count}" for (h, w), count in zip(buckets.sizes, buckets.counts, strict=True) if count]
    empty = [f"{h}x{w}" for (h, w), count in zip(buckets.sizes, buckets.counts, strict=True) if not count]
    nothing = f"; no image is in {', '.join(empty)}" if empty else ""
    alone = ": data.buckets changes nothing for them" if len(held) == 1 else ""
    return f"buckets (height x width) of the training images: {', '.join(held)}{nothing}{alone}"


def small_buckets(buckets: Buckets, step: int) -> str | None:
    """A sentence on buckets with fewer images than the `step` of one batch; None if there are none."""
    small = [
        f"{h}x{w} {count}" for (h, w), count in zip(buckets.sizes, buckets.counts, strict=True) if 0 < count < step
    ]
    if not small:
        return None
    which = "1 bucket holds" if len(small) == 1 else f"{len(small)} buckets hold"
    return (
        f"{which} fewer images than the {step} of a step, whose batches repeat them: "
        f"{', '.join(small)}; take a smaller batch, or a larger data.buckets.step for fewer buckets"
    )
