"""Both loops on a GPU: the same losses as on the CPU, in bfloat16 near them, and interrupted as straight."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import runs
from runs import Crash, Hooks, assert_same_up_to_rounding, crash, first_run, logged, second_run
from sfumato.engine.recorded_step import RecordedGradients
from sfumato.training import autoencoder, diffusion, encode
from sfumato.training.workers import Workers

GAN = "loss.adversarial={weight: 0.5, start: 1, channels: 16, layers: 1}"
VQ = "model.bottleneck={kind: vq, codes: 24, kmeans_init: true, revive_every: 2}"
FIRST = {"kl": (GAN, "loss.output_variance=true"), "vq": (VQ,)}
CLASSES = "conditioner={kind: class, classes: 4, dim: 8}"
ADAPTIVE = "objective={times: {kind: loss-history, bins: 3, memory: 1}, weighting: {kind: learned, features: 8}}"
SECOND = {"text": ("train.condition_dropout=0.5",), "class": (CLASSES,), "adaptive": (ADAPTIVE,)}


def on(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice of a device that all parts of a run make by themselves, or the CPU."""
    assert Workers().device.type == "cuda"
    for part in (autoencoder, diffusion, encode, runs):
        monkeypatch.setattr(part, "Workers", lambda: Workers("cpu" if device == "cpu" else None))


def trained(stage: str, path: Path, overrides: tuple[str, ...], hooks: Hooks | None = None) -> list[dict[str, Any]]:
    """The log of a run of some steps."""
    if stage == "first":
        runs.train_first(path, first_run(*overrides), hooks)
    else:
        runs.train_second(path, second_run(*overrides), path.parent / "cache", hooks)
    name = "reconstruction" if stage == "first" else "loss"
    return [line for line in logged(path) if name in line]


CASES = [*(("first", name) for name in FIRST), *(("second", name) for name in SECOND)]


def settings(stage: str, name: str) -> tuple[str, ...]:
    return (FIRST if stage == "first" else SECOND)[name]


@pytest.mark.parametrize(("stage", "name"), CASES)
def test_the_first_steps_have_the_losses_of_the_cpu(
    stage: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = {}
    for device in ("cpu", "cuda"):
        on(device, monkeypatch)
        logs[device] = trained(stage, tmp_path / device, ("train.steps=4", "train.workers=1", *settings(stage, name)))
    key = "reconstruction" if stage == "first" else "loss"
    assert len(logs["cuda"]) == 4
    for ours, theirs in zip(logs["cuda"], logs["cpu"], strict=True):
        assert ours[key] == pytest.approx(theirs[key], rel=2e-3), (ours["step"], key)
    assert logs["cuda"][0]["gradient_norm"] == pytest.approx(logs["cpu"][0]["gradient_norm"], rel=2e-3)


@pytest.mark.parametrize(("stage", "name"), [("first", "kl"), ("second", "text")])
def test_bfloat16_trains(stage: str, name: str, tmp_path: Path) -> None:
    common = ("train.steps=4", *settings(stage, name))
    full = trained(stage, tmp_path / "full", common)
    half = trained(stage, tmp_path / "half", ("train.precision=bfloat16", *common))
    key = "reconstruction" if stage == "first" else "loss"
    assert all(math.isfinite(line["gradient_norm"]) and line["skipped"] == 0 for line in half)
    for ours, theirs in zip(half, full, strict=True):
        assert ours[key] == pytest.approx(theirs[key], rel=0.05)
    assert [line[key] for line in half] != [line[key] for line in full], "that was no bfloat16"


@pytest.mark.parametrize(("stage", "name"), [("first", "kl"), ("second", "text")])
def test_an_interrupted_run_is_the_straight_one(stage: str, name: str, tmp_path: Path) -> None:
    common = ("train.steps=4", *settings(stage, name))
    straight = trained(stage, tmp_path / "straight", common)
    with pytest.raises(Crash):
        trained(stage, tmp_path / "broken", common, Hooks({3: crash}))
    broken = trained(stage, tmp_path / "broken", common)
    assert [line["step"] for line in broken] == [1, 2, 3, 4]
    key = "reconstruction" if stage == "first" else "loss"
    assert [line[key] for line in broken] == pytest.approx([line[key] for line in straight], rel=1e-4)
    assert_same_up_to_rounding(tmp_path / "straight", tmp_path / "broken")


def test_what_the_loader_reads_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato.data.loader import Batch

    seen, to = [], Batch.to

    def watched(self: Batch, device: torch.device | str) -> Batch:
        seen.append(self.values.is_pinned())
        return to(self, device)

    monkeypatch.setattr(Batch, "to", watched)
    trained("second", tmp_path / "run", ("train.steps=2",))
    assert seen == [True, True]


WORDS = "kind: text, dim: 16, depth: 1, heads: 2, head_dim: 8, max_tokens: 8"
PARTS = f"conditioner={{kind: composite, parts: {{text: {{{WORDS}}}}}}}"
RECORDED = {
    **SECOND,
    "parts": (PARTS, "train.part_dropout={text: 0.4}"),
    "none": ("conditioner={kind: none}",),
    "muon": ("train.optimiser.method=muon",),
    "dropout": ("denoiser.dropout=0.3",),
}


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recorded_steps_are_the_plain_ones(
    name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[RecordedGradients] = []

    class Watched(RecordedGradients):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr("sfumato.training.micro.RecordedGradients", Watched)
    half = precision == "bfloat16"
    common = ("train.steps=6", f"train.precision={precision}", *RECORDED[name])
    recorded = trained("second", tmp_path / "recorded", common)
    assert [len(one) for one in made] == [1], "nothing was recorded"
    monkeypatch.setenv("SFUMATO_GRAPHS", "0")
    plain = trained("second", tmp_path / "plain", common)
    assert len(made) == 1
    for key, tolerance in (("loss", 1e-3), ("gradient_norm", 5e-3)):  # sums over many threads differ from run to run
        expected = [line[key] for line in plain]
        assert [line[key] for line in recorded] == pytest.approx(expected, rel=tolerance * (1 + 9 * half)), key


def test_steps_with_checkpointing_are_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.training.diffusion.recorded", lambda *_: pytest.fail("it was to be recorded"))
    log = trained("second", tmp_path / "run", ("train.steps=2", "train.checkpointing=true"))
    assert [line["step"] for line in log] == [1, 2]
