"""The trained models inside the package: as they were stored, small, and right."""

import re
from pathlib import Path

import pytest
import torch

from command_line import Command
from sfumato.data.toyworld.facts import facts, score
from sfumato.data.toyworld.reader import read_batch
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.model_folder import bits_of, find_folder, load
from sfumato.shipped import CARD, WEIGHTS, example, samples, shipped_models

PROMPTS = (
    "a large red circle",
    "a small blue square on a white background",
    "a small yellow star left of a large green ring on a black background",
    "a large purple heart above a small orange triangle",
)
RED, GREEN, BLUE = range(3)
HEARTS = {
    "red": ((RED,), (GREEN, BLUE)),
    "yellow": ((RED, GREEN), (BLUE,)),
    "green": ((GREEN,), (RED, BLUE)),
    "blue": ((BLUE,), (RED,)),
}
"""Hearts with a name of their own: the channels that are bright in them, and those that are dark."""
MOST_BYTES = 12 * 2**20
"""Of all weights in 8 bits with their cards: every clone and every installation carries them."""


@pytest.fixture(scope="module")
def toy() -> LatentDiffusion:
    return load("zoo:toy")


@pytest.fixture(scope="module")
def emoji() -> LatentDiffusion:
    return load("zoo:emoji")


@pytest.mark.parametrize("name", shipped_models())
def test_the_weights_are_those_of_the_card(name: str) -> None:
    card = (WEIGHTS / name / CARD).read_text(encoding="utf-8")
    stated = re.search(r"digest `(\w+)`", card)
    assert stated is not None
    assert stated[1] == load(f"zoo:{name}").digest
    assert "licence" in card.lower()
    assert example(name) is not None
    assert samples(name) is not None
    assert bits_of(WEIGHTS / name) == 8


def test_the_model_that_follows_prompts_best_is_listed_first() -> None:
    assert shipped_models() == ["toy", "emoji"]


def test_all_weights_together_are_small() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*")) < MOST_BYTES


def test_the_toy_model_samples_what_the_prompts_state(toy: LatentDiffusion) -> None:
    asked = [prompt for prompt in PROMPTS for _ in range(2)]
    images = toy.sample_tensor(asked, steps=20, guidance=1.5, seed=0)
    scores = [score(facts(prompt), reading) for prompt, reading in zip(asked, read_batch(images), strict=True)]
    right = sum(sum(one.holds) for one in scores)
    assert right >= 0.9 * sum(len(one.holds) for one in scores)


def test_the_emoji_model_samples_hearts_of_the_stated_colour_on_white(emoji: LatentDiffusion) -> None:
    """Two of each; the mean over the middle of a heart, in [-1, 1], and the four corners outside."""
    asked = [colour for colour in HEARTS for _ in range(2)]
    images = emoji.sample_tensor([f"{colour} heart" for colour in asked], steps=8, guidance=3.0, seed=0)
    for colour, image in zip(asked, images, strict=True):
        middle, (bright, dark) = image[:, 8:24, 8:24].mean((1, 2)), HEARTS[colour]
        assert middle[list(bright)].min() - middle[list(dark)].max() > 0.4, f"{colour}: {middle}"
        assert corners(image).min() > 0.6, f"{colour}: {corners(image)}"


def test_the_emoji_model_samples_green_trees_and_the_colours_of_a_flag(emoji: LatentDiffusion) -> None:
    trees = ["evergreen tree", "deciduous tree"] * 2
    *trees_made, flag = emoji.sample_tensor([*trees, "flag: France"], steps=8, guidance=3.0, seed=0)
    for name, image in zip(trees, trees_made, strict=True):
        red, green, blue = image[:, 8:24, 8:24]
        share = ((green > red + 0.1) & (green > blue + 0.1)).float().mean()
        assert share > 0.5, f"{name}: {share:.2f} of the middle is green"
        assert corners(image).mean() > 0.6
    left, centre, right = flag[:, 10:22, 2:8], flag[:, 10:22, 13:19], flag[:, 10:22, 24:30]
    assert left[BLUE].mean() > left[RED].mean() + 0.3, "blue at the left"
    assert centre.mean() > 0.5, "white in the middle"
    assert right[RED].mean() > right[BLUE].mean() + 0.3, "red at the right"


def corners(image: torch.Tensor) -> torch.Tensor:
    """The means of the four corners of an image (3, 32, 32), three pixels wide."""
    return torch.stack(
        [image[:, y, x].mean() for y in (slice(3), slice(-3, None)) for x in (slice(3), slice(-3, None))]
    )


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("zoo:tyo", "'zoo:tyo' is not in the package, which has the trained models zoo:toy and zoo:emoji"),
        ("zoo:toy/text", "to train from .*the trained models zoo:toy and zoo:emoji"),
        ("zoo:emoji/text", "to train from"),
    ],
)
def test_other_names_are_answered_in_one_sentence(name: str, part: str) -> None:
    with pytest.raises(UserError, match=part):
        find_folder(name)


def test_the_zoo_lists_models_and_prints_their_cards(command: Command) -> None:
    listed = command("zoo").out
    assert all(f"zoo:{name} " in listed for name in shipped_models())
    for name in shipped_models():
        assert command("zoo", f"zoo:{name}").out == (WEIGHTS / name / CARD).read_text(encoding="utf-8")


def test_a_name_of_the_zoo_stands_where_a_model_folder_does(command: Command, tmp_path: Path) -> None:
    made = command("sample", "zoo:toy", PROMPTS[0], "--steps", 2, "--device", "cpu", "--out", tmp_path / "out")
    assert (made.code, made.err.count("Traceback")) == (0, 0)
    assert (tmp_path / "out" / "0000.png").exists()
    refused = command("distill-decoder", "zoo:toy", "--data", tmp_path)
    assert refused.code == 2
    assert "a model of the package stays as it is" in refused.err
