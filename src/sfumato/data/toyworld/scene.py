"""A scene: objects and their positions. `scene(seed, index, split)` is a pure function, so the world needs no files."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from sfumato.data.toyworld.composition import reserved_binding, reserved_group, reserved_relation
from sfumato.data.toyworld.placement import RandomStream, group, on_axis, spot
from sfumato.data.toyworld.vocabulary import (
    CLASHES,
    COUNTS,
    POSITIONS,
    RELATIONS,
    SIZES,
    Arrangement,
    Vocabulary,
)
from sfumato.errors import UserError

Split = Literal["train", "validation", "held-out"]

FULL = Vocabulary()
# Relative frequency of each arrangement among those of the vocabulary.
_WEIGHTS: dict[Arrangement, float] = {"single": 0.3, "pair": 0.35, "group": 0.2, "row": 0.15}


@dataclass(frozen=True)
class SceneObject:
    """One object. `x`, `y`: centre as fractions of width and height; `diameter`: fraction of the shorter side."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    diameter: float


@dataclass(frozen=True)
class Scene:
    """Objects in the order in which the caption names them, on a background.

    `relation` binds the first of a pair to the second, and each of a row to the next ("left of" or "above");
    `position` is where a single object is. `wording` selects among equivalent captions and never changes the image.
    """

    arrangement: Arrangement
    objects: tuple[SceneObject, ...]
    background: str
    relation: str | None = None
    position: str | None = None
    wording: int = 0

    @property
    def label(self) -> int:
        """The class: texture and shape of the first-named object, an index into `CLASSES`."""
        return class_index(self.objects[0].shape, self.objects[0].texture)


CLASSES: tuple[str, ...] = tuple(f"{texture} {shape}" for shape in FULL.shapes for texture in FULL.textures)


def class_index(shape: str, texture: str) -> int:
    """The index of a class by its parts."""
    return FULL.shapes.index(shape) * len(FULL.textures) + FULL.textures.index(texture)


def reserved(scene: Scene) -> bool:
    """Whether the scene contains a composition that never occurs in training."""
    kinds = [(item.shape, item.colour) for item in scene.objects]
    if any(reserved_binding(*kind) for kind in kinds):
        return True
    if scene.arrangement == "group":
        return reserved_group(len(kinds), *kinds[0])
    relation = scene.relation
    return relation is not None and any(reserved_relation(a, relation, b) for a, b in pairwise(kinds))


def scene(seed: int, index: int, split: Split = "train", vocabulary: Vocabulary = FULL) -> Scene:
    """Scene number `index` of a split; "train" and "validation" have no reserved composition, "held-out" at least one.

    Raises UserError for an unknown split, or a vocabulary in which the split has no scene.
    """
    if split not in get_args(Split):
        raise UserError(f"split {split!r} is not one of {', '.join(get_args(Split))}")
    stream = RandomStream(seed, "toy-world", split, index)
    for _ in range(500):
        candidate = _random_scene(stream, vocabulary)
        if reserved(candidate) == (split == "held-out"):
            return candidate
    raise UserError(f"split {split!r} has no scene in this vocabulary; give it more shapes and colours")


def _arrangement(stream: RandomStream, vocabulary: Vocabulary) -> Arrangement:
    names = vocabulary.arrangements
    mark = stream.uniform(0.0, sum(_WEIGHTS[name] for name in names))
    for name in names:
        mark -= _WEIGHTS[name]
        if mark < 0:
            return name
    return names[-1]


def _kinds(stream: RandomStream, vocabulary: Vocabulary, background: str, count: int) -> list[tuple[str, str]]:
    """Distinct (shape, colour) pairs that stand out from the background."""
    colours = [colour for colour in vocabulary.colours if (colour, background) not in CLASHES]
    if not colours or len(vocabulary.shapes) * len(colours) < count:
        raise UserError(f"the {background} background needs more shapes and colours for {count} different objects")
    kinds: list[tuple[str, str]] = []
    while len(kinds) < count:
        kind = stream.choice(vocabulary.shapes), stream.choice(colours)
        if kind not in kinds:
            kinds.append(kind)
    return kinds


def _random_scene(stream: RandomStream, vocabulary: Vocabulary) -> Scene:
    arrangement = _arrangement(stream, vocabulary)
    background = stream.choice(vocabulary.backgrounds)
    wording = int(stream.uniform() * 1024)
    count = {"single": 1, "pair": 2, "row": 3}.get(arrangement) or stream.choice(tuple(COUNTS.values()))
    kinds = _kinds(stream, vocabulary, background, count if arrangement != "group" else 1)
    if arrangement == "group":
        kinds *= count
    # Half of the objects are plain, because textures are the finest detail of the world.
    textures = tuple(t for t in vocabulary.textures for _ in range(2 if t == "plain" else 1))
    # Three or more objects fit only if they are small, even in a vocabulary without "small".
    sizes = vocabulary.sizes if count <= 2 else ("small",)
    if arrangement == "group":
        looks = [(stream.choice(sizes), stream.choice(textures))] * count
        diameters = [stream.uniform(*SIZES[looks[0][0]])] * count
    else:
        looks = [(stream.choice(sizes), stream.choice(textures)) for _ in range(count)]
        diameters = [stream.uniform(*SIZES[size]) for size, _ in looks]
    radii = [diameter / 2 for diameter in diameters]
    relation = position = None
    if arrangement == "single":
        position = stream.choice(tuple(POSITIONS))
        points = [spot(stream, POSITIONS[position], radii[0])]
    elif arrangement == "group":
        points = group(stream, count, radii[0])
    else:
        relation = stream.choice(RELATIONS if arrangement == "pair" else ("left of", "above"))
        backwards = relation in ("below", "right of")
        points = on_axis(stream, radii[:: -1 if backwards else 1], relation in ("above", "below"))
        points = points[:: -1 if backwards else 1]
    objects = tuple(
        SceneObject(shape, colour, size, texture, x, y, diameter)
        for (shape, colour), (size, texture), (x, y), diameter in zip(kinds, looks, points, diameters, strict=True)
    )
    return Scene(arrangement, objects, background, relation, position, wording)
