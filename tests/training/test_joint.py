"""Both stages at once: interrupted runs are straight ones, two processes are one, wrong settings are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato
from command_line import Command
from forks import Forks, ranks
from runs import Images, assert_ends_alike_when_interrupted, assert_same_up_to_rounding, joint_run, logged, train_both
from sfumato.config import apply_overrides, parse
from sfumato.errors import UserError
from sfumato.training.collapse import collapse_warnings
from sfumato.training.joint_model import joint_model
from sfumato.training.joint_pass import RunningScaling
from sfumato.training.joint_run import JointRun, first_stage, second_stage

CASES = {
    "detached": ["train.accumulate=2", "objective.condition_mean=1", "objective.weighting.kind=learned"],
    "prior": ["coupling.kind=prior", "objective.times={kind: loss-history, bins: 3, memory: 1}", "model.dropout=0.1"],
    "anchored": ["coupling.kind=anchored", "objective.latents=sample", "train.optimiser.method=muon"],
}


@pytest.mark.parametrize("kind", CASES)
def test_an_interrupted_run_is_the_straight_one(kind: str, tmp_path: Path) -> None:
    config = joint_run(*CASES[kind], "train.steps=5")
    assert_ends_alike_when_interrupted(tmp_path, lambda path: train_both(path, config), 4)
    lines = [line for line in logged(tmp_path / "broken") if "spread" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert all(len(line["spread"]) == 3 for line in lines)
    assert ("anchor" in lines[0]) == (kind == "anchored")


TRAIN = """
import sys
from pathlib import Path
import runs
runs.train_both(Path(sys.argv[1]), runs.joint_run(*sys.argv[2:]))
"""


def test_two_processes_train_the_model_that_one_does(tmp_path: Path, forks: Forks) -> None:
    gentle = ["train.optimiser.learning_rate=1e-4", "train.denoiser.learning_rate=1e-4", "train.steps=3"]
    gentle += ["conditioner={kind: class, classes: 4, dim: 8}", "objective.stratified=true"]
    both = [forks.start(TRAIN, [tmp_path / "two", *gentle, "train.batch=2"], **rank) for rank in ranks()]
    train_both(tmp_path / "one", joint_run(*gentle, "train.batch=4"))
    assert [process.wait() for process in both] == [0, 0], both[0].output[-3000:]
    assert_same_up_to_rounding(tmp_path / "one", tmp_path / "two", rounding=1e-4)  # layers that begin at zero
    one, two = ([line["spread"] for line in logged(tmp_path / name) if "spread" in line] for name in ("one", "two"))
    assert torch.allclose(torch.tensor(one), torch.tensor(two), rtol=1e-3)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.bottleneck={kind: vq, codes: 8}"], "set model.bottleneck.kind=kl"),
        (["loss.adversarial.weight=0.5"], "loss.adversarial.weight is 0.5"),
        (["loss.latent_noise.gamma=3"], "loss.latent_noise.gamma is 3"),
        (["conditioner={kind: semantic, classes: 3}"], "conditioner.kind is semantic"),
        (["conditioner={kind: composite, parts: {a: {kind: semantic}}}"], "conditioner.parts.a.kind is semantic"),
        (["coupling.kind=prior", "objective.latents=sample"], "set objective.latents=mean"),
        (["coupling.kind=prior", "objective.loss=l1"], "set objective.loss=l2"),
        (["coupling={kind: detached, noise: 1}"], "coupling.noise"),
        (["coupling={kind: naive, share: 0.5}"], "unknown key 'coupling.share'"),
        (["data.buckets={step: 8}"], "joint training needs one"),
        (["train.draws=0"], "train.draws"),
        (["data.size=18", "model.channel_multipliers=[1, 2, 2]"], "not a multiple of f = 4"),
        (["train.part_dropout={a: 0.5}"], "train.part_dropout names 'a'"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        joint_run(*overrides)
    assert said in str(refused.value)


def test_each_stage_has_the_settings_of_the_run() -> None:
    config = joint_run("train.ema_decay=0.5", "train.minutes=2", "train.denoiser.learning_rate=0.5")
    first, second = first_stage(config), second_stage(config)
    assert (first.train.batch, second.train.batch) == (2, 6)
    assert (first.train.optimiser.learning_rate, second.train.optimiser.learning_rate) == (1e-3, 0.5)
    for stage in (first, second):
        assert (stage.train.ema_decay, stage.train.minutes, stage.train.steps) == (0.5, 2, 6)


def test_a_kind_that_is_overridden_leaves_the_settings_of_the_other_behind() -> None:
    raw = apply_overrides({**joint_run().model_dump(mode="json")}, ["coupling.kind=naive"], JointRun)
    assert parse(raw, JointRun, "joint").coupling.model_dump() == {"kind": "naive", "weight": 1.0}


def test_the_running_scaling_is_the_weighted_mean_and_deviation_of_what_it_saw() -> None:
    g = torch.Generator().manual_seed(0)
    batches = [torch.randn(40, 2, 3, 5, generator=g) * scale + 7 for scale in (1.0, 2.0, 4.0)]
    scaling, weights = RunningScaling(torch.zeros(2), torch.ones(2)), torch.ones(1, dtype=torch.float64)
    for x in batches:
        away = x - scaling.shift[:, None, None]
        scaling.follow(x.mean((0, 2, 3)), away.square().mean((0, 2, 3)), 0.75)
        weights = torch.cat([weights * 0.75, torch.tensor([0.25])])
    means = torch.stack([torch.zeros(2), *(x.mean((0, 2, 3)) for x in batches)]).double()
    squares = torch.stack([torch.ones(2), *(x.square().mean((0, 2, 3)) for x in batches)]).double()
    mean = weights @ means
    torch.testing.assert_close(scaling.shift.double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scaling.scale.double() ** -2, weights @ squares - mean.square(), rtol=1e-4, atol=1e-4)


def test_a_collapse_is_said_once() -> None:
    notes: dict[str, Any] = {}
    good: dict[str, float | list[float]] = {"latent_std": [1.0, 1.2], "effective_rank": 0.4, "psnr": 20.0}
    assert collapse_warnings(good, notes, normalised=True) == []
    assert collapse_warnings(good | {"psnr": 17.1, "effective_rank": 0.13}, notes, normalised=True) == []
    bad = collapse_warnings({"latent_std": [0.1, 0.1], "effective_rank": 0.1, "psnr": 16.0}, notes, normalised=True)
    assert len(bad) == 3
    assert "fell from 1.1 to 0.1" in bad[0]
    assert "from 0.400 to 0.100" in bad[1]
    assert "20.0 to 16.0 dB" in bad[2]
    assert collapse_warnings({"psnr": 1.0}, notes, normalised=True) == []
    small: dict[str, float | list[float]] = {"latent_std": [0.05]}
    assert "beside noise of 1" in collapse_warnings(small, {}, normalised=False)[0]
    assert collapse_warnings(small, {}, normalised=True) == []


def test_the_model_learns_the_images_own_captions_and_classes() -> None:
    model = joint_model(joint_run(), Images())
    assert model.config.classes == Images().classes
    assert model.second is not None
    assert model.second.config.latents == "mean"
    with pytest.raises(UserError, match="'text'"):
        joint_model(joint_run(), Images(fields=("label",)))


def test_the_command_makes_a_model_that_samples_and_reconstructs(command: Command, tmp_path: Path) -> None:
    toy = "data={kind: toy, size: 32, length: 24}"
    small = ["train.steps=2", "train.batch=2", "train.preview_images=4", "train.precision=float32", toy]
    small += ["model.channels=8", "denoiser.channels=32", "conditioner.dim=16", "coupling.kind=naive"]
    done = command("train", "joint", "zoo:toy/joint", *small, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert {path.name for path in (tmp_path / "run" / "previews").glob("*.png")} == {
        "reconstruction-00000002.png",
        "samples-00000002.png",
    }
    last = logged(tmp_path / "run")[-1]
    assert {"psnr", "latent_std", "effective_rank", "sample_std"} <= last.keys()
    model = sfumato.load(tmp_path / "run")
    assert model.config.about["diffusion"]["coupling"] == "naive"
    assert model.scaling.scale.tolist() == [1, 1, 1]
    drawn = command("sample", tmp_path / "run", "a red circle", "-n", 1, "--steps", 1, "--out", tmp_path / "images")
    assert drawn.code == 0, drawn.err
    out = ["--out", tmp_path / "again.png"]
    assert command("reconstruct", tmp_path / "run", tmp_path / "images" / "0000.png", *out).code == 0
    again = command("train", "joint", "zoo:toy/joint", *small[:-1], "--out", tmp_path / "run")
    assert again.code == 2
    assert "coupling.kind" in again.err
