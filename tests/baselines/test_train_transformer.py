"""Training a transformer on codes: an interrupted run is the straight one, and the commands end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import runs
from command_line import CLASS, Command, facts_of
from runs import Hooks, Images, assert_same_tensors, crash, interrupt, logged, saved
from sfumato import checkpoint
from sfumato.baselines.model import load_code_model
from sfumato.config import parse
from sfumato.errors import UserError
from sfumato.model_folder import load
from sfumato.training.encode import cached_latents
from sfumato.training.run import RunFolder
from sfumato.training.state import TrainState
from sfumato.training.transformer import ConditionalTransformer, TransformerRun, build_transformer, train_transformer

VQ = "model.bottleneck={kind: vq, codes: 16}"


def config(**train: object) -> TransformerRun:
    raw = {
        "transformer": {"dim": 16, "depth": 1, "head_dim": 8, "dropout": 0.1},
        "conditioner": runs.SECOND_STAGE["conditioner"],
        "data": runs.SECOND_STAGE["data"],
        "train": {**runs.SECOND_STAGE["train"], "steps": 5, "condition_dropout": 0.5, **train},
    }
    return parse(raw, TransformerRun, "transformer")


def train(path: Path, cache: Path, hooks: Hooks) -> TrainState:
    torch.seed()
    run, first = config(), runs.first_model(VQ)
    latents = cached_latents(first, Images(), cache, mirrored=True, precision="float32")
    model = build_transformer(run, first, latents)
    folder = RunFolder(path)
    folder.claim(run)
    networks = ConditionalTransformer(model.network, model.conditioner)
    assert first.autoencoder.quantize is not None
    return train_transformer(run, networks, first.autoencoder.quantize, latents, folder, hooks.preview, hooks.export)


def test_an_interrupted_run_is_the_straight_one(tmp_path: Path) -> None:
    train(tmp_path / "straight", tmp_path / "cache", Hooks())
    assert train(tmp_path / "broken", tmp_path / "cache", Hooks({2: interrupt})).step == 3
    with pytest.raises(runs.Crash):
        train(tmp_path / "broken", tmp_path / "cache", Hooks({5: crash}))
    assert checkpoint.saved_steps(tmp_path / "broken" / "states")[-1][0] == 4
    train(tmp_path / "broken", tmp_path / "cache", Hooks())
    (tensors, numbers), (others, other_numbers) = saved(tmp_path / "straight"), saved(tmp_path / "broken")
    assert_same_tensors(tensors, others)
    assert numbers == other_numbers
    assert logged(tmp_path / "straight") == logged(tmp_path / "broken")


def test_an_autoencoder_without_codes_is_refused() -> None:
    with pytest.raises(UserError, match=r"bottleneck.kind is kl: train one with vq"):
        build_transformer(config(), runs.first_model(), None)  # type: ignore[arg-type]  # refused before it is looked at


def test_the_commands_end_to_end(command: Command, tmp_path: Path) -> None:
    small = ("data={kind: toy, size: 32, length: 32}", "train.steps=2", "train.batch=4", "train.workers=0")
    model = "model={channels: 8, norm_groups: 8, channel_multipliers: [1, 1, 1], bottleneck: {kind: vq, codes: 16}}"
    done = command("train", "autoencoder", "zoo:toy/vq-autoencoder", "--out", tmp_path / "vq", model, *small)
    assert done.code == 0, done.err
    common = (
        "--autoencoder",
        tmp_path / "vq",
        "--out",
        tmp_path / "run",
        "transformer={dim: 16, depth: 1, head_dim: 8}",
    )
    done = command("train", "transformer", "zoo:toy/transformer", *common, CLASS, *small)
    assert done.code == 0, done.err
    assert list((tmp_path / "run" / "previews").glob("samples-*.png"))
    sample = ("sample", tmp_path / "run", "--label", "plain ring", "--guidance", 2, "--top-k", 8, "--out")
    done = command(*sample, tmp_path / "samples", "-n", 3)
    assert done.code == 0, done.err
    image = Image.open(tmp_path / "samples" / "0002.png")
    assert facts_of(tmp_path / "samples" / "0002.png")["seed"] == "2"
    command(*sample, tmp_path / "alone", "-n", 1, "--seed", 2)
    alone = np.asarray(Image.open(tmp_path / "alone" / "0000.png")).astype(int)
    assert np.abs(np.asarray(image).astype(int) - alone).max() <= 1
    command("sample", tmp_path / "run", "--label", "0", "--label", "1", "-n", 3, "--out", tmp_path / "two")
    sheet = Image.open(tmp_path / "two" / "grid.png")
    assert sheet.size == (3 * 34 - 2, 2 * 34 - 2), "a row for each of two labels"
    model_of = load_code_model(tmp_path / "run")
    assert model_of.config.about["transformer"]["steps"] == 2
    with pytest.raises(UserError, match="not trained with text conditioning"):
        model_of.sample_tensor(["a ring"])
    facts = json.loads(command("info", tmp_path / "run", "--json").out)
    assert facts["codes"] == {"an image": 64, "rows": 8, "columns": 8, "codebook": 16}
    assert facts["parameters"]["transformer"] == sum(p.numel() for p in model_of.network.parameters())
    assert "sfumato sample" in command("info", tmp_path / "run").out
    with pytest.raises(
        UserError, match="is a transformer over codes, not a diffusion model: sample from it with `sfumato sample`"
    ):
        load(tmp_path / "run")
    for option, value in (("--steps", 3), ("--negative", "a"), ("--strip", 2), ("--decoder", "tiny")):
        refused = command(*sample, tmp_path / "x", option, value)
        assert f"{option} is an option of diffusion models, and" in refused.err
    assert (
        "--guidance '1,2': give one number"
        in command("sample", tmp_path / "run", "--guidance", "1,2", "--out", "x").err
    )
    assert "autoencoder only" in command("sample", tmp_path / "vq", "--out", tmp_path / "x").err
    assert not (tmp_path / "x").exists()
