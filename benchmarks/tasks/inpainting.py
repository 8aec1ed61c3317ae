"""Image with a hole to whole image: is what was hidden there again, and is everything else as it was?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.tasks.given import Given, reconstructed, timed
from benchmarks.tasks.result import PERCENT, THREE, TWO, WHOLE, Outcome, Table
from benchmarks.tasks.super_resolution import feature_distance
from sfumato import tasks
from sfumato.autoencoder.perceptual import EfficientNetFeatures
from sfumato.conditioning.table import CompositeConfig, text_config
from sfumato.data.conditions.holes import random_hole
from sfumato.data.toyworld.caption import stated
from sfumato.data.toyworld.facts import Fact, facts, score
from sfumato.data.toyworld.reader import Reading, read_batch
from sfumato.data.toyworld.render import boxes
from sfumato.data.toyworld.scene import Scene
from sfumato.images import to_uint8, to_unit
from sfumato.model import LatentDiffusion
from sfumato.pipeline.conditions import source_of
from sfumato.pipeline.parts import second_stage
from sfumato.pipeline.request import DEFAULT_GUIDANCE, SampleRequest
from sfumato.rng import numpy_generator
from sfumato.tasks.colour import drift

MARGIN = 2
"""Pixels around an object's box that a hole hides too."""
KINDS = ("count", "shape", "colour", "texture", "size", "relation", "position")


@dataclass(frozen=True)
class Hidden:
    """A hole (H, W) bool in each scene, and which of the objects it covers."""

    holes: Tensor
    objects: tuple[int, ...]


def measure(given: Given) -> Outcome:
    """Holes over objects of the toy world, or of the trained kinds in images of a folder."""
    return _of_scenes(given) if given.scenes is not None else _of_images(given)


# ---- the toy world


def _of_scenes(given: Given) -> Outcome:
    """One object hidden whole, and one by half, whose other half shows what it was."""
    scenes, _ = given.of_toy_world("inpainting")
    rows: dict[str, tuple[float | None, ...]] = {}
    kinds: dict[str, tuple[float | None, ...]] = {}
    sheet: dict[str, Tensor] = {}
    seconds: list[float] = []
    original = read_batch(given.images)
    for half in (False, True):
        hidden = over_objects(scenes, given.size, half, given.settings.seed)
        shown = {}
        possible = list(ways(given).items())
        for way, texts in possible[-1:] if half else possible:  # the visible half shows what a caption would describe
            shown[way], took = fill(given, hidden.holes, texts)
            seconds.append(took)
        sheet |= sheet_columns(given, hidden.holes, shown, "half hidden" if half else "hidden")
        shown["filled smoothly"] = pasted(given, hidden.holes, smooth(given, hidden.holes))
        shown["autoencoder alone"] = pasted(given, hidden.holes, reconstructed(given))
        for way, images in shown.items():
            name = f"{'half of an object' if half else 'an object'}: {way}"
            found = restored(scenes, hidden, original, read_batch(images))
            rows[name] = (found["hidden"], found["elsewhere"], largest_change(given, hidden.holes, images))
            kinds[name] = tuple(found.get(kind) for kind in KINDS)
    title = "Facts of the captions that the reader finds again, of those it found in the originals:"
    columns = {"facts of what was hidden": PERCENT, "facts of the rest": PERCENT, "largest change outside": WHOLE}
    tables = [Table(title, columns, rows), Table("Facts of what was hidden:", dict.fromkeys(KINDS, PERCENT), kinds)]
    return _outcome(given, tables, sheet, seconds)


def _outcome(given: Given, tables: list[Table], sheet: dict[str, Tensor], seconds: Sequence[float]) -> Outcome:
    captions = given.texts if "text" in source_of(given.model).reads and given.texts is not None else ()
    return Outcome(tables, {**sheet, "original": given.images}, sum(seconds) / len(seconds), captions)


def ways(given: Given) -> dict[str, list[str] | None]:
    """The captions to sample with, by the name of the variant; None: without."""
    model, found = given.model, dict[str, list[str] | None]()
    takes_text = "text" in source_of(model).reads
    if takes_text and given.texts is not None:
        found["with the caption"] = given.texts
    if not takes_text or without_text(model):
        found["without the caption" if takes_text else "samples"] = None
    return found


def without_text(model: LatentDiffusion) -> bool:
    """Whether a model of text knows the case without."""
    config = second_stage(model).config
    return config.condition_dropout > 0 or any(config.part_dropout.get(name, 0) > 0 for name in _texts(model))


def _texts(model: LatentDiffusion) -> list[str]:
    """Names of the parts that read text."""
    config = second_stage(model).config.conditioner
    if not isinstance(config, CompositeConfig):
        return []
    return [name for name, part in config.parts.items() if text_config(part) is not None]


def guided(model: LatentDiffusion, settings: SampleRequest, texts: Sequence[str] | None) -> SampleRequest:
    """With the usual guidance by the text, where the text is a part that was dropped alone and no scale is given."""
    parts = [name for name in _texts(model) if second_stage(model).config.part_dropout.get(name, 0) > 0]
    if texts is None and "text" in source_of(model).reads:
        return replace(settings, guidance=None)
    if settings.guidance is None and parts:
        return replace(settings, guidance=dict.fromkeys(parts, DEFAULT_GUIDANCE))
    return settings


def fill(given: Given, holes: Tensor, texts: Sequence[str] | None) -> tuple[Tensor, float]:
    """The images with their holes filled in, and seconds for each."""
    masks = [Image.fromarray(hole.numpy().astype(np.uint8) * 255) for hole in holes]
    title = "inpaint" if texts is None else "inpaint with captions"
    return timed(
        title,
        len(holes),
        guided(given.model, given.settings, texts),
        lambda settings: tasks.inpaint_each(given.model, given.pil, masks, texts, options=settings),
    )


def over_objects(scenes: Sequence[Scene], size: tuple[int, int], half: bool, seed: int) -> Hidden:
    """A box around one item of each scene, or over one half of it; which item and which half are random."""
    H, W = size
    holes = torch.zeros(len(scenes), H, W, dtype=torch.bool)
    objects = []
    for i, one in enumerate(scenes):
        rng = numpy_generator(seed, "hidden", i)
        number = int(rng.integers(len(one.objects)))
        _, x0, y0, x1, y1 = boxes(one, size)[number]
        left, top, right, bottom = x0 * W - MARGIN, y0 * H - MARGIN, x1 * W + MARGIN, y1 * H + MARGIN
        if half:
            side = int(rng.integers(4))
            middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
            left, right = (middle_x, right) if side == 0 else (left, middle_x) if side == 1 else (left, right)
            top, bottom = (middle_y, bottom) if side == 2 else (top, middle_y) if side == 3 else (top, bottom)
        rows = slice(max(0, round(top)), min(H, round(bottom)))
        holes[i, rows, max(0, round(left)) : min(W, round(right))] = True
        objects.append(number)
    return Hidden(holes, tuple(objects))


def about_hidden(fact: Fact, one: Scene, item: int) -> bool:
    """Whether a fact of the caption is of the hidden item, or of how many there are."""
    if fact.kind in ("count", "background"):
        return fact.kind == "count"
    subject = 0 if one.arrangement == "group" else item
    return fact.subject == subject or (fact.kind == "relation" and fact.subject == subject - 1)


def restored(
    scenes: Sequence[Scene], hidden: Hidden, originals: Sequence[Reading], readings: Sequence[Reading]
) -> dict[str, float]:
    """Shares of the caption's facts that hold of those that did: `hidden`, `elsewhere`, and the hidden ones by kind."""
    found: dict[str, list[bool]] = {}
    for one, item, before, after in zip(scenes, hidden.objects, originals, readings, strict=True):
        intended = facts(stated(one))
        held, holds = score(intended, before).holds, score(intended, after).holds
        for fact, then, now in zip(intended, held, holds, strict=True):
            if not then:
                continue
            inside = about_hidden(fact, one, item)
            found.setdefault("hidden" if inside else "elsewhere", []).append(now)
            if inside:
                found.setdefault(fact.kind, []).append(now)
    return {name: sum(values) / len(values) for name, values in found.items()}


# ---- images of a folder


def _of_images(given: Given) -> Outcome:
    """Holes of the kinds that the model was trained with."""
    seed, count = given.settings.seed, len(given.images)
    masks = [random_hole(given.holes, given.size, numpy_generator(seed, "benchmark hole", i)) for i in range(count)]
    holes = torch.from_numpy(np.stack(masks))
    shown: dict[str, Tensor] = {}
    seconds: list[float] = []
    for way, texts in ways(given).items():
        shown[way], took = fill(given, holes, texts)
        seconds.append(took)
    sheet = sheet_columns(given, holes, shown, "given")
    shown["filled smoothly"] = pasted(given, holes, smooth(given, holes))
    shown["autoencoder alone"] = pasted(given, holes, reconstructed(given))
    network = EfficientNetFeatures().to(given.model.device)
    original = to_unit(given.images)
    rows = {
        way: (
            psnr_within(images, given.images, holes),
            feature_distance(network, to_unit(images), original),
            largest_change(given, holes, images),
        )
        for way, images in shown.items()
    }
    covered = holes.double().mean().item()
    title = (
        f"Against the originals; the holes cover {covered:.0%} of the images, the feature distance, of the whole "
        "image, is that of EfficientNet-Lite0:"
    )
    columns = {"PSNR in the hole, dB": TWO, "feature distance": THREE, "largest change outside": WHOLE}
    table = Table(title, columns, rows)
    return _outcome(given, [table], sheet, seconds)


def psnr_within(images: Tensor, originals: Tensor, holes: Tensor) -> float:
    """The mean over images (N, 3, H, W) uint8 of the PSNR of what is in the holes (N, H, W)."""
    error = (images.double() - originals.double()).square().mean(1)
    inside = holes.double()
    mean = (error * inside).sum((1, 2)) / inside.sum((1, 2))
    return (10 * torch.log10(255.0**2 / mean.clamp_min(1e-3))).mean().item()


# ---- both


def pasted(given: Given, holes: Tensor, images: Tensor) -> Tensor:
    """The originals with other images' pixels in the holes."""
    return torch.where(holes[:, None], images, given.images)


def smooth(given: Given, holes: Tensor) -> Tensor:
    """What needs no model: the surroundings' colours, bridged smoothly."""
    return to_uint8(drift(to_unit(given.images), 1 - holes[:, None].float()))


def largest_change(given: Given, holes: Tensor, images: Tensor) -> float:
    """Of any pixel outside of the holes, of 255."""
    change = (images.int() - given.images.int()).abs().amax(1)
    return float(change[~holes].max())


def sheet_columns(given: Given, holes: Tensor, shown: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The images with grey holes, and the samples."""
    grey = torch.full_like(given.images, 128)
    return {name: pasted(given, holes, grey)} | {f"{name}, {way}": images for way, images in shown.items()}
