"""The toy world behind the dataset contract."""

import pytest
import torch

from sfumato.data.toyworld.dataset import ToyWorld, ToyWorldConfig
from sfumato.data.toyworld.render import MAP_NAMES
from sfumato.data.toyworld.vocabulary import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Vocabulary, plural
from sfumato.errors import UserError


def test_an_example_carries_the_fields_asked_for() -> None:
    world = ToyWorld((48, 64), seed=1, length=10, fields=("text", "label", "map", "boxes"))
    example = world[3]
    assert example.image.shape == (3, 48, 64)
    assert example.image.dtype == torch.uint8
    assert tuple(example.fields) == world.fields == ("text", "label", "map", "boxes")
    assert world.classes is not None
    assert world.classes[example.fields["label"]].split()[1] in example.fields["text"]
    assert example.fields["map"].shape == (48, 64)
    assert {MAP_NAMES[box[0]] for box in example.fields["boxes"]} <= set(SHAPES)
    assert tuple(ToyWorld(64, length=10)[0].fields) == ("text", "label")


def test_examples_do_not_depend_on_the_batch() -> None:
    world = ToyWorld(64, length=20, fields=("text", "label", "map"))
    for index, example in zip([4, 9, 2], world.examples([4, 9, 2]), strict=True):
        again = world[index]
        assert torch.equal(example.image, again.image)
        assert example.fields["text"] == again.fields["text"]
        assert torch.equal(example.fields["map"], again.fields["map"])


def test_length_bounds_the_indices() -> None:
    world = ToyWorld(64, length=5)
    assert len(world) == 5
    assert len(list(world)) == 5  # type: ignore[call-overload]
    with pytest.raises(IndexError):
        world[5]


def test_the_fingerprint_follows_the_content() -> None:
    base = ToyWorldConfig()
    assert base.build().fingerprint() == ToyWorld().fingerprint()
    changes = [{"size": 32}, {"seed": 1}, {"length": 7}, {"split": "held-out"}, {"fields": ("text",)}]
    changes += [{"vocabulary": Vocabulary(textures=("plain",))}]
    prints = {base.model_copy(update=change).build().fingerprint() for change in changes}
    assert len(prints | {base.build().fingerprint()}) == len(changes) + 1


def test_captions_hold_every_word_of_the_world() -> None:
    captions = ToyWorld(64).captions()
    assert captions is not None
    found = set(" ".join(captions).replace(",", "").split())
    nouns = {*SHAPES, *map(plural, SHAPES)}
    expected = nouns | {*COLOURS, *SIZES, *TEXTURES, *BACKGROUNDS} - {"plain"}
    assert expected | {"two", "three", "four", "above", "below", "left", "right", "middle", "top", "bottom"} <= found
    held_out = ToyWorld(64, split="held-out").captions()
    assert held_out is not None
    assert set(" ".join(held_out).replace(",", "").split()) <= found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length 0 of the toy world"),
        ({"size": 16}, "size 16 is too small"),
        ({"fields": ("depth",)}, "field 'depth' is not one of text, label, map, boxes"),
    ],
)
def test_mistakes_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ToyWorld(**arguments)
