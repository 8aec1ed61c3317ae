"""One maker of conditions: what it refuses, what it fills in, and the warning about truncated prompts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import tiny
from command_line import Command
from sfumato.conditioning.lengths import cut_texts
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.model_folder import load
from sfumato.pipeline import pipeline
from sfumato.pipeline.plan import NoteWarning, plan
from sfumato.pipeline.request import SampleRequest

LONG = "a red apple " * 100


def seen(model: LatentDiffusion, *classes: int) -> LatentDiffusion:
    return replace(model, config=model.config.model_copy(update={"classes_seen": classes}))


@pytest.fixture(scope="module")
def five() -> LatentDiffusion:
    return tiny.model("diffusion.conditioner={kind: class, classes: 5, dim: 8}", "classes=[a, b, c, d, e]")


def test_a_class_without_training_images_is_refused(five: LatentDiffusion, command: Command, tmp_path: Path) -> None:
    model = seen(five, 0, 2)
    for label in (4, "4", "e"):
        with pytest.raises(UserError, match=rf"label {label}: no training image had this class; .* trained on a, c$"):
            plan(model, SampleRequest(label=[0, label]))
    plan(model, SampleRequest(label=[0, "c"]))
    plan(five, SampleRequest(label=4))
    assert model.digest == five.digest, "what was seen does not change what a model is"
    model.save(tmp_path / "model")
    assert load(tmp_path / "model").config.classes_seen == (0, 2)
    done = command("sample", tmp_path / "model", "--label", 4, "--out", tmp_path / "out")
    assert done.code == 2
    assert "no training image had this class" in done.err
    assert not (tmp_path / "out").exists()


def test_truncated_prompts_are_reported_once(command: Command, tmp_path: Path) -> None:
    model = tiny.model()
    assert model.second is not None
    cut = cut_texts(model.second.conditioner, [LONG, "a red apple", LONG + "!"])
    assert [(one.limit, one.tokens > 100) for one in cut] == [(8, True), (8, True)]
    (note,) = plan(model, SampleRequest(prompt=[LONG, LONG, LONG + "!", "a"])).notes
    assert note.startswith(
        "2 prompts are longer than the 8 tokens that this model reads, and truncated: for example 'a red"
    )
    assert plan(model, SampleRequest(prompt="a red apple")).notes == ()
    assert pipeline.sample(model, SampleRequest(prompt=LONG, steps=1)).record.notes
    with pytest.warns(NoteWarning, match="1 prompt is longer than the 8 tokens"):
        model.sample_tensor(LONG, steps=1)
    model.save(tmp_path / "model")
    Image.new("RGB", (24, 16)).save(tmp_path / "photo.png")
    common = ("--steps", 1, "--precision", "float32", "--out", tmp_path / "out")
    for words in (
        ("sample", tmp_path / "model", LONG, "-n", 2),
        ("edit", tmp_path / "model", tmp_path / "photo.png", LONG, "-n", 2),
        ("interpolate", tmp_path / "model", LONG, "a red apple", "--frames", 2),
        ("invert", tmp_path / "model", tmp_path / "photo.png", "--text", LONG),
    ):
        done = command(*words, *common)
        assert done.code == 0, done.err
        assert done.err.count("longer than the 8 tokens") == 1


def test_a_label_of_a_model_of_both_may_be_left_out_where_it_was_dropped() -> None:
    words = "{kind: text, dim: 16, depth: 1, heads: 2, head_dim: 8, max_tokens: 8}"
    sort = "{kind: class, classes: 2, dim: 16}"
    both = f"diffusion.conditioner={{kind: composite, parts: {{words: {words}, sort: {sort}}}}}"
    options = {"steps": 2, "sampler": "ddim", "guidance": 1.0}
    model = tiny.model(both)
    assert torch.isfinite(model.sample_tensor("a red apple", **options)).all()
    with pytest.raises(UserError, match="conditioned on text and label: give a label"):
        tiny.model(both, "diffusion.condition_dropout=0").sample_tensor("a red apple", **options)
