"""Scenes are a pure function of seed, index and split, and held-out compositions stay out of training."""

from itertools import combinations, pairwise, product

import pytest

from sfumato.data.toyworld.composition import reserved_binding
from sfumato.data.toyworld.render import boxes
from sfumato.data.toyworld.scene import Scene, Split, reserved, scene
from sfumato.data.toyworld.vocabulary import (
    ARRANGEMENTS,
    BACKGROUNDS,
    CLASHES,
    COLOURS,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Vocabulary,
)
from sfumato.errors import UserError


def scenes(count: int, split: Split = "train", seed: int = 0) -> list[Scene]:
    return [scene(seed, index, split) for index in range(count)]


def bindings(scenes: list[Scene]) -> set[tuple[str, str]]:
    return {(item.shape, item.colour) for one in scenes for item in one.objects}


def constellations(scenes: list[Scene]) -> set[tuple[object, ...]]:
    """Relations between neighbours, both ways of saying them made one, and groups."""
    found: set[tuple[object, ...]] = set()
    for one in scenes:
        kinds = [(item.shape, item.colour) for item in one.objects]
        if one.arrangement == "group":
            found.add((len(kinds), *kinds[0]))
        elif one.relation in ("below", "right of"):
            found.update((b, {"below": "above", "right of": "left of"}[one.relation], a) for a, b in pairwise(kinds))
        elif one.relation:
            found.update((a, one.relation, b) for a, b in pairwise(kinds))
    return found


def test_a_scene_depends_on_seed_index_and_split_alone() -> None:
    assert scenes(50) == scenes(50)
    assert scene(0, 7) != scene(0, 8)
    assert scene(0, 7) != scene(1, 7)
    assert scene(0, 7, "train") != scene(0, 7, "validation")


def test_the_first_scene_is_frozen() -> None:
    """Caches and results name a world by its fingerprint: a new rendering rule raises the edition in dataset.py."""
    first = scene(0, 0)
    item = first.objects[0]
    assert (first.arrangement, first.background, first.position) == FROZEN[:3]
    assert (item.shape, item.colour, item.size, item.texture) == FROZEN[3:7]
    assert (item.x, item.y, item.diameter) == pytest.approx(FROZEN[7:], abs=1e-6)


FROZEN = (
    "single",
    "white",
    "at the bottom right",
    "circle",
    "pink",
    "large",
    "dotted",
    0.7737718,
    0.7694937,
    0.3924564,
)


def test_training_never_shows_a_reserved_composition_and_held_out_always_does() -> None:
    train, validation, held_out = scenes(3000), scenes(1000, "validation"), scenes(1500, "held-out")
    assert not any(map(reserved, train))
    assert not any(map(reserved, validation))
    assert all(map(reserved, held_out))
    # The same without asking the rule: every held-out scene has a binding or a constellation that training lacks.
    shown = bindings(train), constellations(train)
    for one in held_out:
        assert bindings([one]) - shown[0] or constellations([one]) - shown[1]


def test_every_shape_is_trained_in_every_colour_but_one() -> None:
    assert bindings(scenes(3000)) == {pair for pair in product(SHAPES, COLOURS) if not reserved_binding(*pair)}
    for shape in SHAPES:
        assert sum(reserved_binding(shape, colour) for colour in COLOURS) == 1
    for colour in COLOURS:
        assert sum(reserved_binding(shape, colour) for shape in SHAPES) == 1


def test_every_word_meets_every_other_in_training() -> None:
    train = scenes(6000)
    looks = {(t.shape, t.colour, t.size, t.texture, one.background) for one in train for t in one.objects}
    kinds = [list(SHAPES), list(COLOURS), list(SIZES), list(TEXTURES), list(BACKGROUNDS)]
    for i, j in combinations(range(len(kinds)), 2):
        met = {(look[i], look[j]) for look in looks}
        expected = set(product(kinds[i], kinds[j]))
        if (i, j) == (0, 1):
            expected = {pair for pair in expected if not reserved_binding(*pair)}
        if (i, j) == (1, 4):
            expected -= CLASHES
        assert met == expected
    assert {one.arrangement for one in train} == set(ARRANGEMENTS)
    assert {one.relation for one in train} == {None, *RELATIONS}
    assert {one.position for one in train} == {None, *POSITIONS}
    assert {len(one.objects) for one in train} == {1, 2, 3, 4}


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_objects_stay_inside_and_apart(size: tuple[int, int]) -> None:
    gap = 0.045  # of the shorter side: about three pixels of 64
    side = min(size)
    for one in scenes(1500):
        places = boxes(one, size)
        for _, x0, y0, x1, y1 in places:
            assert min(x0, y0) > 0
            assert max(x1, y1) < 1
        for (_, ax0, ay0, ax1, ay1), (_, bx0, by0, bx1, by1) in combinations(places, 2):
            across = max(ax0 - bx1, bx0 - ax1) * size[1] / side
            down = max(ay0 - by1, by0 - ay1) * size[0] / side
            assert max(across, down) > gap


def test_stated_relations_and_positions_are_so() -> None:
    for one in scenes(1000):
        for first, second in pairwise(one.objects) if one.relation else ():
            dx, dy = second.x - first.x, second.y - first.y
            expected = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[str(one.relation)]
            assert expected == max(abs(dx), abs(dy))
        if one.position:
            x, y = POSITIONS[one.position]
            assert max(abs(one.objects[0].x - x), abs(one.objects[0].y - y)) < 0.06


def test_a_vocabulary_narrows_the_world() -> None:
    narrow = Vocabulary(shapes=("circle", "square"), colours=("red", "blue", "green"), arrangements=("single", "pair"))
    scenes = [scene(0, index, "train", narrow) for index in range(200)]
    assert {shape for shape, _ in bindings(scenes)} == {"circle", "square"}
    assert {colour for _, colour in bindings(scenes)} == {"red", "blue", "green"}
    assert {one.arrangement for one in scenes} == {"single", "pair"}


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="split 'test' is not one of train, validation, held-out"):
        scene(0, 0, "test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"colours \['crimson'\] must be distinct words out of red"):
        Vocabulary(colours=("crimson",))
    with pytest.raises(UserError, match="split 'held-out' has no scene in this vocabulary"):
        scene(0, 0, "held-out", Vocabulary(shapes=("circle",), colours=("red",), arrangements=("single",)))
