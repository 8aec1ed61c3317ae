"""Changing one fact of an image by its caption: is it changed, and is everything else as it was?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from benchmarks.tasks.given import Given, timed
from benchmarks.tasks.layout import matched
from benchmarks.tasks.result import PERCENT, THREE, Outcome, Table
from sfumato import tasks
from sfumato.data.toyworld.caption import Description, Mention, stated, words
from sfumato.data.toyworld.facts import Fact, facts, score
from sfumato.data.toyworld.reader import Reading, read_batch
from sfumato.data.toyworld.render import boxes
from sfumato.data.toyworld.scene import Scene
from sfumato.data.toyworld.vocabulary import CLASHES, Vocabulary
from sfumato.errors import UserError
from sfumato.rng import numpy_generator

KINDS = ("colour", "shape", "texture", "background")
STRENGTHS = (0.4, 0.6, 0.8)


@dataclass(frozen=True)
class Change:
    """One fact of a scene changed: of which kind, the caption that asks for it, all that this states, what is new."""

    kind: str
    caption: str
    stated: tuple[Fact, ...]
    new: tuple[bool, ...]


def measure(given: Given, strengths: Sequence[float]) -> Outcome:
    """Held-out scenes with one fact changed in their caption, edited at several strengths."""
    scenes, world = given.of_toy_world("edit")
    changes = [
        changed(one, world.vocabulary, numpy_generator(given.settings.seed, "change", i), KINDS[i % len(KINDS)])
        for i, one in enumerate(scenes)
    ]
    captions = [change.caption for change in changes]
    before = read_batch(given.images)
    shown: dict[str, Tensor] = {"given": given.images}
    seconds: list[float] = []
    for strength in strengths:
        shown[f"strength {strength:g}"], took = timed(
            f"edit, strength {strength:g}",
            len(scenes),
            given.settings,
            lambda settings, by=strength: tasks.edit_each(  # type: ignore[misc]
                given.model, given.pil, captions, strength=by, options=settings
            ),
            strength,
        )
        seconds.append(took)
    rows: dict[str, tuple[float | None, ...]] = {}
    kinds: dict[str, tuple[float | None, ...]] = {}
    for name, images in shown.items():
        readings = before if name == "given" else read_batch(images)
        made, stays, whole, by_kind = held(changes, before, readings)
        rows[name] = (made, stays, whole, overlap(scenes, given.size, readings))
        kinds[name] = tuple(by_kind.get(kind) for kind in KINDS)
    columns = dict.fromkeys(("requested changes made", "other facts that stay", "images with both"), PERCENT)
    columns["IoU with the given objects"] = THREE
    tables = [
        Table("By the reader, of other facts those that it found before:", columns, rows),
        Table("Requested changes made, by what was to change:", dict.fromkeys(KINDS, PERCENT), kinds),
    ]
    return Outcome(tables, shown, sum(seconds) / len(seconds), captions)


def changed(one: Scene, vocabulary: Vocabulary, rng: np.random.Generator, kind: str) -> Change:
    """A scene's caption with one fact of a kind changed, or of the next kind that can be.

    The new value is one of the world's words that goes with everything else.
    """
    source = stated(one)
    start = KINDS.index(kind)
    for tried in (*KINDS[start:], *KINDS[:start]):
        options = _options(one, source, vocabulary, tried)
        if options:
            target = options[int(rng.integers(len(options)))]
            now, was = facts(target), facts(source)
            return Change(tried, words(target), now, tuple(fact not in was for fact in now))
    raise UserError("the model's world has one colour, shape, texture and background: there is nothing to change")


def _options(one: Scene, source: Description, vocabulary: Vocabulary, kind: str) -> list[Description]:
    """All descriptions that differ in one fact of a kind and can be rendered."""
    if kind == "background":
        others = [name for name in vocabulary.backgrounds if name != one.background]
        fit = [name for name in others if all((item.colour, name) not in CLASHES for item in one.objects)]
        return [replace(source, background=name) for name in fit]
    values = {"colour": vocabulary.colours, "shape": vocabulary.shapes, "texture": vocabulary.textures}[kind]
    found = []
    for place, mention in enumerate(source.mentions):
        rest = source.mentions[:place] + source.mentions[place + 1 :]
        for value in values:
            new = _with(mention, kind, value)
            taken = any((other.shape, other.colour) == (new.shape, new.colour) for other in rest)
            if new != mention and not taken and (new.colour, one.background) not in CLASHES:
                mentions = (*source.mentions[:place], new, *source.mentions[place + 1 :])
                found.append(replace(source, mentions=mentions))
    return found


def _with(mention: Mention, kind: str, value: str) -> Mention:
    match kind:
        case "colour":
            return replace(mention, colour=value)
        case "shape":
            return replace(mention, shape=value)
        case _:
            return replace(mention, texture=value)


def held(
    changes: Sequence[Change], before: Sequence[Reading], after: Sequence[Reading]
) -> tuple[float, float, float, dict[str, float]]:
    """Shares of requested changes that hold, of other facts that still do, and of images with all of that right; and of
    the changes by kind.
    """
    made: dict[str, list[bool]] = {}
    stays: list[bool] = []
    both: list[bool] = []
    for change, then, now in zip(changes, before, after, strict=True):
        was, holds = score(change.stated, then).holds, score(change.stated, now).holds
        done = all(h for h, new in zip(holds, change.new, strict=True) if new)
        rest = [h for h, new, w in zip(holds, change.new, was, strict=True) if not new and w]
        made.setdefault(change.kind, []).append(done)
        stays += rest
        both.append(done and all(rest))
    every = [value for values in made.values() for value in values]
    by_kind = {kind: _share(values) for kind, values in made.items()}
    return _share(every), _share(stays), _share(both), by_kind


def _share(values: Sequence[bool]) -> float:
    return sum(values) / max(1, len(values))


def overlap(scenes: Sequence[Scene], size: tuple[int, int], readings: Sequence[Reading]) -> float:
    """The mean IoU of the scenes' objects with those that are read: whether objects are still where they were."""
    found: list[float] = []
    for one, reading in zip(scenes, readings, strict=True):
        layout = [(category, (x0, y0, x1, y1)) for category, x0, y0, x1, y1 in boxes(one, size)]
        found += [iou for iou, _ in matched(layout, reading)]
    return sum(found) / len(found)
