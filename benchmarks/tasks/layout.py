"""Boxes to image: is there an object of the category in every box, and does it fill the box?"""

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.tasks.given import Given, reconstructed, timed
from benchmarks.tasks.result import PERCENT, THREE, Outcome, Table
from sfumato import tasks
from sfumato.data.toyworld.reader import Reading, read_batch
from sfumato.data.toyworld.render import MAP_NAMES, boxes
from sfumato.images import to_uint8
from sfumato.training.condition_images import box_images

RECOVERED = 0.8
"""The least intersection over union of a box that counts as recovered."""

Corners = tuple[float, float, float, float]
Layout = list[tuple[int, Corners]]
"""Category, and x0, y0, x1, y1 as fractions of the image, of each object."""


def measure(given: Given) -> Outcome:
    """Images of the boxes of held-out scenes, whose objects are read back."""
    scenes, world = given.of_toy_world("layout")
    layouts = [[(c, _inside((x0, y0, x1, y1))) for c, x0, y0, x1, y1 in boxes(one, world.size)] for one in scenes]
    asked = [[tasks.Box(c, (x0, y0, x1 - x0, y1 - y0)) for c, (x0, y0, x1, y1) in layout] for layout in layouts]
    sampled, seconds = timed(
        "compose",
        len(asked),
        given.settings,
        lambda settings: tasks.compose_each(given.model, asked, size=given.size, options=settings),
    )
    shown = {"samples": sampled, "autoencoder alone": reconstructed(given), "real scenes": given.images}
    rows = {name: recovery(layouts, read_batch(images)) for name, images in shown.items()}
    forms = (PERCENT, PERCENT, PERCENT, THREE, PERCENT)
    names = (f"IoU ≥ {RECOVERED}", "right category", "both", "mean IoU", "right number of objects")
    return Outcome(
        [Table("Given boxes that the reader finds again:", dict(zip(names, forms, strict=True)), rows)],
        {"boxes": _boxes_image(asked, given.size), "samples": sampled, "a scene of these boxes": given.images},
        seconds,
    )


def recovery(layouts: Sequence[Layout], readings: Sequence[Reading]) -> tuple[float, float, float, float, float]:
    """Over all boxes: the share with enough IoU, of the right category, and with both; mean IoU; images' counts."""
    overlaps: list[float] = []
    named: list[bool] = []
    counts = []
    for layout, reading in zip(layouts, readings, strict=True):
        for (category, _), (iou, place) in zip(layout, matched(layout, reading), strict=True):
            overlaps.append(iou)
            named.append(place is not None and reading.objects[place].shape == MAP_NAMES[category])
        counts.append(len(reading.objects) == len(layout))
    total = len(overlaps)
    enough = [iou >= RECOVERED for iou in overlaps]
    both = [a and b for a, b in zip(enough, named, strict=True)]
    return sum(enough) / total, sum(named) / total, sum(both) / total, sum(overlaps) / total, sum(counts) / len(counts)


def matched(layout: Layout, reading: Reading) -> list[tuple[float, int | None]]:
    """For each box its IoU with an object of its own, and which; the best pairs first. Without one 0 and None."""
    pairs = sorted(
        ((iou(box, item.box), i, j) for i, (_, box) in enumerate(layout) for j, item in enumerate(reading.objects)),
        reverse=True,
    )
    found: dict[int, tuple[float, int]] = {}
    for overlap, i, j in pairs:
        if overlap > 0 and i not in found and all(j != taken for _, taken in found.values()):
            found[i] = (overlap, j)
    return [found.get(i, (0.0, None)) for i in range(len(layout))]


def iou(one: Corners, other: Corners) -> float:
    """Intersection over union of two boxes."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    if across <= 0 or down <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return across * down / (sum(areas) - across * down)


def _inside(box: Corners) -> Corners:
    x0, y0, x1, y1 = (min(max(value, 0.0), 1.0) for value in box)
    return x0, y0, x1, y1


def _boxes_image(asked: Sequence[Sequence[tasks.Box]], size: tuple[int, int]) -> Tensor:
    places = [torch.tensor([box.box for box in layout]) for layout in asked]
    categories = [torch.tensor([int(box.label) for box in layout]) for layout in asked]
    return to_uint8(box_images(places, categories, len(MAP_NAMES), size))
