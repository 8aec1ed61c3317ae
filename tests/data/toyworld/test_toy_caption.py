"""Captions say what is so, are read back exactly, and a caption outside the grammar is refused."""

import pytest

from sfumato.data.toyworld.caption import Description, Mention, caption, describe, parse, stated, words
from sfumato.data.toyworld.facts import Fact, facts
from sfumato.data.toyworld.scene import scene
from sfumato.errors import UserError

SCENES = [scene(3, index, split) for split in ("train", "held-out") for index in range(600)]


def test_captions_are_read_back() -> None:
    for one in SCENES:
        assert parse(caption(one)) == stated(one)
        assert parse(words(describe(one))) == describe(one)


def test_a_caption_states_nothing_but_facts_of_its_scene() -> None:
    for one in SCENES:
        assert set(facts(caption(one))) <= set(facts(one))


def test_captions_vary_in_what_they_leave_out() -> None:
    statements = [stated(one) for one in SCENES]
    singles = [s for one, s in zip(SCENES, statements, strict=True) if one.arrangement == "single"]
    assert 0.02 < sum(s.background is None for s in statements) / len(statements) < 0.12
    assert 0.05 < sum(s.position is None for s in singles) / len(singles) < 0.25
    assert 0.05 < sum(s.mentions[0].size is None for s in singles) / len(singles) < 0.25


def test_wording() -> None:
    blue = Mention("square", "blue", "striped", "large")
    red = Mention("circle", "red", size="small")
    assert (
        words(Description((red, blue), "above", None, "white"))
        == "a small red circle above a large striped blue square on a white background"
    )
    assert words(Description((Mention("cross", "green", count=3),), None, None, "grey")) == (
        "three green crosses on a grey background"
    )
    assert (
        words(Description((Mention("star", "orange"),), None, "in the middle", None)) == "an orange star in the middle"
    )
    assert words(Description((red, blue, red), "left of")).startswith("from left to right, a small red circle, a large")


def test_facts_of_a_caption() -> None:
    found = facts("A small red circle above a large striped blue square on a white background.")
    assert found == (
        Fact("count", 2),
        Fact("shape", "circle", 0),
        Fact("colour", "red", 0),
        Fact("texture", "plain", 0),
        Fact("size", "small", 0),
        Fact("shape", "square", 1),
        Fact("colour", "blue", 1),
        Fact("texture", "striped", 1),
        Fact("size", "large", 1),
        Fact("relation", "above", 0),
        Fact("background", "white"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a dog on a white background",
        "a circle on a white background",
        "a red blue circle",
        "a red circles",
        "three red circle",
        "a red circle near a blue square",
        "a red circle a blue square",
        "a red circle on a white background please",
        "from left to right, a red circle above a blue square",
    ],
)
def test_a_caption_outside_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="outside the toy world's grammar"):
        parse(text)
