"""Training on from a trained model: its weights are the first ones, its tokenizer and scale stay."""

from pathlib import Path

import pytest
import torch

import sfumato
from command_line import TEXT, Command, Runs
from sfumato.checkpoint import load_tensors, newest
from sfumato.config import apply_overrides, parse, read_source
from sfumato.errors import UserError
from sfumato.training.autoencoder import AutoencoderRun, build_players
from sfumato.training.data import open_data
from sfumato.training.diffusion import DiffusionRun
from sfumato.training.encode import cached_latents
from sfumato.training.second_stage import begin
from sfumato.training.workers import Workers


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_stage_1_begins_with_the_model_s_autoencoder(runs: Runs) -> None:
    raw = read_source(str(runs.first))
    drawn, begun = (
        build_players(parse(apply_overrides(raw, more), AutoencoderRun, "first"), Workers("cpu")).autoencoder
        for more in ([], [f"start={runs.autoencoder}"])
    )
    trained = sfumato.load(runs.autoencoder).autoencoder
    assert same(begun, trained)
    assert not same(drawn, trained)


def second(runs: Runs, tmp: Path, *overrides: str) -> sfumato.LatentDiffusion:
    """Stage 2 as a run begins it, on other captions than the model's."""
    raw = read_source(str(runs.second))
    config = parse(apply_overrides(raw, [TEXT, "data.length=6", "data.size=32", *overrides]), DiffusionRun, "second")
    data = open_data(config.data, config.held_out, tmp, tmp / "cache", print, None, config.conditions)
    first = sfumato.load(runs.autoencoder)
    return begin(config, first, cached_latents(first, data.training, tmp / "cache", precision="float32"))


def test_stage_2_begins_with_the_model_s_weights_tokenizer_and_scale(runs: Runs, tmp_path: Path) -> None:
    trained, fresh, begun = (
        sfumato.load(runs.text),
        second(runs, tmp_path),
        second(runs, tmp_path, f"start={runs.text}"),
    )
    assert trained.second is not None
    assert begun.second is not None
    assert fresh.second is not None
    assert same(begun.second.denoiser, trained.second.denoiser)
    assert not same(fresh.second.denoiser, trained.second.denoiser)
    assert begun.second.conditioner is not None
    assert trained.second.conditioner is not None
    assert same(begun.second.conditioner, trained.second.conditioner)
    assert torch.equal(begun.scaling.scale, trained.scaling.scale)
    assert not torch.equal(fresh.scaling.scale, trained.scaling.scale)
    drawn = [model.sample_tensor(["a red circle"], steps=2, seeds=[3]) for model in (begun, trained)]
    torch.testing.assert_close(*drawn, atol=0, rtol=0)


MISTAKES = {
    "another width": ("denoiser.channels=64", "the configuration asks for"),
    "another prediction": (
        "objective.prediction=x0",
        "was trained with objective.prediction .*configuration has x0",
    ),
    "no conditioner": (
        "conditioner={kind: none}",
        "was trained with conditioner.kind text, .* has none",
    ),
    "another schedule": ("schedule.end=0.03", "was trained with schedule "),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_does_not_fit_is_named(name: str, runs: Runs, tmp_path: Path) -> None:
    override, message = MISTAKES[name]
    with pytest.raises(UserError, match=message):
        second(runs, tmp_path, f"start={runs.text}", override)


def test_an_autoencoder_is_no_start_of_stage_2(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is an autoencoder, and stage 2 begins with a whole model"):
        second(runs, tmp_path, f"start={runs.autoencoder}")


def test_the_commands_go_on_from_a_model(runs: Runs, tmp_path: Path, command: Command) -> None:
    still = ("train.optimiser.learning_rate=1e-12", "train.steps=1")
    out = tmp_path / "first"
    done = command("train", "autoencoder", runs.first, "--out", out, "--start", runs.autoencoder, *still)
    assert done.code == 0, done.err
    state = newest(out / "states", print)
    assert state is not None
    assert f"start: {runs.autoencoder}" in (out / "config.yaml").read_text()
    trained = sfumato.load(runs.autoencoder).autoencoder.state_dict()
    moved = {name: value for name, value in load_tensors(state)[0].items() if name.startswith("module.autoencoder.")}
    assert len(moved) == len(trained)
    for name, value in moved.items():
        torch.testing.assert_close(value, trained[name.removeprefix("module.autoencoder.")], atol=1e-9, rtol=0)
    out = tmp_path / "second"
    options = ("--autoencoder", runs.autoencoder, "--out", out, "--start", runs.text)
    done = command("train", "diffusion", runs.second, *options, TEXT, *still)
    assert done.code == 0, done.err
    assert sfumato.load(out).second is not None
    done = command("train", "autoencoder", runs.first, "--out", tmp_path / "no", "--start", tmp_path / "nothing")
    assert done.code == 2
    assert "does not exist" in done.err
