"""The trained models inside the package: as they were stored, small, and right."""

import re
from pathlib import Path

import pytest

from command_line import Command
from sfumato.data.toyworld.facts import facts, score
from sfumato.data.toyworld.reader import read_batch
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.model_folder import find_folder, load
from sfumato.shipped import CARD, WEIGHTS, example, samples, shipped_models

PROMPTS = (
    "a large red circle",
    "a small blue square on a white background",
    "a small yellow star left of a large green ring on a black background",
    "a large purple heart above a small orange triangle",
)
MOST_BYTES = 12 * 2**20
"""Of all weights in 8 bits with their cards: every clone and every installation carries them."""


@pytest.fixture(scope="module")
def toy() -> LatentDiffusion:
    return load("zoo:toy")


@pytest.mark.parametrize("name", shipped_models())
def test_the_weights_are_those_of_the_card(name: str) -> None:
    card = (WEIGHTS / name / CARD).read_text(encoding="utf-8")
    stated = re.search(r"digest `(\w+)`", card)
    assert stated is not None
    assert stated[1] == load(f"zoo:{name}").digest
    assert "licence" in card.lower()
    assert example(name) is not None
    assert samples(name) is not None


def test_all_weights_together_are_small() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*")) < MOST_BYTES


def test_the_toy_model_samples_what_the_prompts_state(toy: LatentDiffusion) -> None:
    asked = [prompt for prompt in PROMPTS for _ in range(2)]
    images = toy.sample_tensor(asked, steps=20, guidance=1.5, seed=0)
    scores = [score(facts(prompt), reading) for prompt, reading in zip(asked, read_batch(images), strict=True)]
    right = sum(sum(one.holds) for one in scores)
    assert right >= 0.9 * sum(len(one.holds) for one in scores)


@pytest.mark.parametrize(
    ("name", "part"), [("zoo:tyo", "'zoo:tyo' is not in the package"), ("zoo:toy/text", "to train from")]
)
def test_other_names_are_answered_in_one_sentence(name: str, part: str) -> None:
    with pytest.raises(UserError, match=part):
        find_folder(name)


def test_the_zoo_lists_models_and_prints_their_cards(command: Command) -> None:
    listed = command("zoo").out
    assert all(f"zoo:{name} " in listed for name in shipped_models())
    assert command("zoo", "zoo:toy").out == (WEIGHTS / "toy" / CARD).read_text(encoding="utf-8")


def test_a_name_of_the_zoo_stands_where_a_model_folder_does(command: Command, tmp_path: Path) -> None:
    made = command("sample", "zoo:toy", PROMPTS[0], "--steps", 2, "--device", "cpu", "--out", tmp_path / "out")
    assert (made.code, made.err.count("Traceback")) == (0, 0)
    assert (tmp_path / "out" / "0000.png").exists()
    refused = command("distill-decoder", "zoo:toy", "--data", tmp_path)
    assert refused.code == 2
    assert "a model of the package stays as it is" in refused.err
