"""Label map to image: does every pixel show the class that the map names?"""

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.tasks.given import Given, reconstructed, timed
from benchmarks.tasks.result import PERCENT, Outcome, Table
from sfumato import tasks
from sfumato.conditioning.metadata import standard_palette
from sfumato.data.toyworld.reader import read_maps
from sfumato.data.toyworld.render import MAP_NAMES, semantic_maps
from sfumato.images import to_uint8
from sfumato.training.condition_images import map_images


def measure(given: Given) -> Outcome:
    """Images of the maps of held-out scenes, read back pixel by pixel."""
    scenes, world = given.of_toy_world("semantic")
    maps = semantic_maps(scenes, world.size)
    sampled, seconds = timed(
        "paint",
        len(maps),
        given.settings,
        lambda settings: tasks.paint_each(given.model, [ids.long() for ids in maps], options=settings),
    )
    shown = {"samples": sampled, "autoencoder alone": reconstructed(given), "real scenes": given.images}
    seen = {name: read_maps(images) for name, images in shown.items()}
    known = given.model.config.conditioning_metadata.map
    palette = standard_palette(len(MAP_NAMES)) if known is None else known.palette
    coloured = to_uint8(map_images(maps, palette, given.size))
    found = to_uint8(map_images(seen["samples"], palette, given.size))
    return Outcome(
        [agreement(seen, maps), by_class(seen, maps)],
        {"map": coloured, "samples": sampled, "map read from it": found, "a scene of this map": given.images},
        seconds,
    )


def agreement(seen: Mapping[str, Tensor], maps: Tensor) -> Table:
    """Shares of pixels that show what the maps (N, H, W) name."""
    columns = ("all pixels", "background", "objects", "mean over classes", "mean IoU")
    objects = maps > 0
    rows = {}
    for name, read in seen.items():
        right = read == maps
        each = [value for value in class_shares(read, maps) if value is not None]
        numbers = (right, right[~objects], right[objects])
        rows[name] = (*(n.double().mean().item() for n in numbers), sum(each) / len(each), mean_iou(read, maps))
    return Table("Pixels that show the class that the map names:", dict.fromkeys(columns, PERCENT), rows)


def by_class(seen: Mapping[str, Tensor], maps: Tensor) -> Table:
    """The same for each class."""
    rows = {name: class_shares(read, maps) for name, read in seen.items()}
    return Table("Of the pixels of each class:", dict.fromkeys(MAP_NAMES, PERCENT), rows)


def class_shares(read: Tensor, maps: Tensor) -> list[float | None]:
    """For each class the share of its pixels that are read as it; None where there are none."""
    areas = [maps == number for number in range(len(MAP_NAMES))]
    return [(read[area] == k).double().mean().item() if area.any() else None for k, area in enumerate(areas)]


def mean_iou(read: Tensor, maps: Tensor) -> float:
    """Intersection over union of each class that the maps have, over all images, and the mean of these."""
    found = []
    for number in torch.unique(maps).tolist():
        one, other = read == number, maps == number
        found.append(((one & other).sum() / (one | other).sum()).item())
    return sum(found) / len(found)
