"""A run that was interrupted is the run that was not: bit for bit on the CPU, both stages, log included."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from data.make_images import save
from forks import COMMAND, Forks
from runs import (
    FIRST_STAGE,
    SIZE,
    Crash,
    Hooks,
    Images,
    assert_same_tensors,
    crash,
    first_model,
    first_run,
    interrupt,
    latents_of,
    logged,
    saved,
    second_run,
    train_first,
    train_second,
)
from sfumato import checkpoint
from sfumato.autoencoder.bottleneck import Encoding
from sfumato.autoencoder.model import Autoencoder
from sfumato.cli.training_runs import run_autoencoder
from sfumato.config import apply_overrides, parse
from sfumato.errors import UserError
from sfumato.model_folder import load
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.averages.snapshots import found_in
from sfumato.training.encode import cached_latents
from sfumato.training.run import RunFolder, differ

KL = [
    "loss.output_variance=true",
    "loss.adversarial={weight: 0.5, start: 3, warmup_steps: 2, ramp_steps: 2, channels: 16, layers: 1, lecam: 0.1}",
    "model.dropout=0.2",
    "train.accumulate=2",
    "train.steps=8",
]
MUON = ["train.optimiser.method=muon", "model.channels=32", "train.steps=7"]
VQ = ["model.bottleneck={kind: vq, codes: 24, kmeans_init: true, revive_every: 2}", "train.steps=8"]
FIRST = {"kl": KL, "vq": VQ, "muon": MUON}
SECOND = {
    "text": [
        "train.accumulate=2",
        "train.condition_dropout=0.5",
        "denoiser.dropout=0.1",
        "mirrored=true",
        "objective.condition_mean=1",
    ],
    "class": ["conditioner={kind: class, classes: 4, dim: 8}", "objective.stratified=true"],
    "adaptive": [
        "objective={times: {kind: loss-history, bins: 3, memory: 1}, weighting: {kind: learned, features: 8}}",
        "train.power_averages={snapshot_every: 2, snapshots: 3}",
        "conditioner={kind: none}",
        "train.accumulate=2",
        "train.steps=9",
    ],
    "unconditional": ["conditioner={kind: none}", "train.condition_dropout=0", "train.optimiser.method=muon"],
}
INTERRUPTIONS = [(interrupt, 2), (crash, 5)]
"""Stopped at 3 by a signal and saved there; torn away after 5, so that step 5 is lost with all that followed 4."""


def both(train, straight: Path, broken: Path) -> None:
    """Trains straight through in one folder, with interruptions in the other, and compares what is on the disk."""
    train(straight, Hooks())
    stops = []
    for act, step in INTERRUPTIONS:
        try:
            stops.append(train(broken, Hooks({step: act})).step)
        except Crash:
            stops.append(checkpoint.saved_steps(broken / "states")[-1][0])
    assert stops == [3, 4]
    train(broken, Hooks())

    (tensors, numbers), (other_tensors, other_numbers) = saved(straight), saved(broken)
    assert_same_tensors(tensors, other_tensors)
    assert numbers == other_numbers
    assert logged(straight) == logged(broken)


@pytest.mark.parametrize("kind", FIRST)
def test_an_interrupted_first_stage_is_the_straight_one(kind: str, tmp_path: Path) -> None:
    config = first_run(*FIRST[kind])
    both(lambda path, hooks: train_first(path, config, hooks), tmp_path / "straight", tmp_path / "broken")
    steps = [line["step"] for line in logged(tmp_path / "broken") if "nll" in line]
    assert steps == list(range(1, config.train.steps + 1))


@pytest.mark.parametrize("kind", SECOND)
def test_an_interrupted_second_stage_is_the_straight_one(kind: str, tmp_path: Path) -> None:
    config = second_run(*SECOND[kind])
    both(
        lambda path, hooks: train_second(path, config, tmp_path / "cache", hooks),
        tmp_path / "straight",
        tmp_path / "broken",
    )
    steps = [line["step"] for line in logged(tmp_path / "broken") if "loss" in line]
    assert steps == list(range(1, config.train.steps + 1))
    one, other = (found_in(tmp_path / name / "snapshots") for name in ("straight", "broken"))
    assert [(s.step, s.width) for s in one] == [(s.step, s.width) for s in other]
    assert [s.step for s in one] == ([4, 4, 8, 8, 9, 9] if kind == "adaptive" else [])
    for snapshot, again in zip(one, other, strict=True):
        assert snapshot.path.read_bytes() == again.path.read_bytes()


class Killed(BaseException):
    """Passes through every `except Exception`, as the end of a process would."""


def die(*_: object, **__: object) -> None:
    raise Killed


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first stage of four steps that nothing interrupts."""
    path = tmp_path_factory.mktemp("straight")
    train_first(path, first_run("train.steps=4", "train.save_every=2"))
    return path


@pytest.mark.parametrize(
    ("module", "name"), [(checkpoint, "save_file"), (os, "fsync"), (os, "replace"), (checkpoint, "prune")]
)
def test_the_end_within_a_save_costs_the_steps_since_the_last(
    module: object, name: str, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = first_run("train.steps=4", "train.save_every=2")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        train_first(tmp_path / "broken", config, Hooks({3: lambda: patch.setattr(module, name, die)}))
    left = [step for step, _ in checkpoint.saved_steps(tmp_path / "broken" / "states")]
    assert left == ([2, 4] if name == "prune" else [2])
    train_first(tmp_path / "broken", config)
    assert saved(tmp_path / "broken")[1] == saved(straight)[1]
    assert_same_tensors(saved(tmp_path / "broken")[0], saved(straight)[0])
    assert logged(tmp_path / "broken") == logged(straight)


def test_the_end_within_the_export_writes_the_model_again(tmp_path: Path) -> None:
    """The model is written before the state: a state at the last step would leave nothing to do, and no model."""
    config = first_run("train.steps=4")
    hooks = Hooks()
    hooks.export = lambda network, state: die() if state.step == 4 else None  # type: ignore[method-assign]
    with pytest.raises(Killed):
        train_first(tmp_path, config, hooks)
    again = Hooks()
    train_first(tmp_path, config, again)
    assert again.exported == [4]


SLOW_SAVE = """
import sys, time
from pathlib import Path
from safetensors.torch import save
import runs
from sfumato import checkpoint

def slowly(tensors, path, metadata):
    whole = save(tensors, metadata)
    with open(path, "wb") as file:
        file.write(whole[: len(whole) // 2])
        file.flush()
        print("half", flush=True)
        time.sleep(600)

save_file = checkpoint.save_file
hooks = runs.Hooks({3: lambda: setattr(checkpoint, "save_file", slowly)})
runs.train_first(Path(sys.argv[1]), runs.first_run("train.steps=4"), hooks)
"""


def test_kill_9_in_the_middle_of_a_save_loses_nothing_before_it(tmp_path: Path, straight: Path, forks: Forks) -> None:
    process = forks.start(SLOW_SAVE, [tmp_path / "broken"])
    process.wait_for("half\n")
    process.kill()
    assert process.wait() == -signal.SIGKILL
    states = tmp_path / "broken" / "states"
    assert [step for step, _ in checkpoint.saved_steps(states)] == [2]
    assert list(states.glob(".step-*.part")), "the process should have died within the save"

    train_first(tmp_path / "broken", first_run("train.steps=4"))
    assert_same_tensors(saved(tmp_path / "broken")[0], saved(straight)[0])
    assert not list(states.glob(".*")), "the half-written file should be gone"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_stops_and_the_same_command_goes_on(
    number: int, code: int, tmp_path: Path, forks: Forks
) -> None:
    """From outside, through the command line, as Ctrl-C in a terminal."""
    config = tmp_path / "tiny.yaml"
    raw = {**FIRST_STAGE, "data": {"kind": "toy", "size": 32, "length": 32}}
    config.write_text(yaml.safe_dump(raw))
    run = tmp_path / "run"
    command = ["train", "autoencoder", config, "--out", run, "train.save_every=100000", "train.steps=100000"]
    process = forks.start(COMMAND, command)
    while not (run / "log.jsonl").exists() or not (run / "log.jsonl").read_text():
        assert process.poll() is None, process.output
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait() == code, "`stage1 && stage2` must not begin stage 2"
    assert str(run / "model") in process.output
    ((stopped, _),) = checkpoint.saved_steps(run / "states")
    assert load(run).config.about["autoencoder"]["steps"] == stopped
    assert len({line["step"] for line in logged(run)}) == stopped

    run_autoencoder(parse(apply_overrides(raw, [f"train.steps={stopped + 1}"]), AutoencoderRun, "tiny"), run, None)
    assert checkpoint.saved_steps(run / "states")[-1][0] == stopped + 1


def test_an_interrupted_encoding_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = first_model()
    whole = latents_of(model, tmp_path / "whole")
    encode, calls = Autoencoder.encode, []

    def some(self: Autoencoder, image: Tensor, noise: Tensor | None = None) -> Encoding:
        calls.append(len(image))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(self, image, noise)

    monkeypatch.setattr(Autoencoder, "encode", some)
    arguments = {"mirrored": True, "precision": "float32", "batch": 4}
    with pytest.raises(KeyboardInterrupt):
        cached_latents(model, Images(), tmp_path / "part", **arguments)
    again = cached_latents(model, Images(), tmp_path / "part", **arguments)
    assert calls == [4, 4, 3, 4, 4, 4, 3], "what was encoded before the interruption is not encoded again"
    cached_latents(model, Images(), tmp_path / "part", **arguments)
    assert len(calls) == 7, "a finished cache is opened"
    for row in range(len(whole)):
        for seed in range(4):
            one, other = whole.variant(row, seed), again.variant(row, seed)
            torch.testing.assert_close(one.moments, other.moments, atol=2e-3, rtol=2e-3)  # other batches, float16
            assert one.fields == other.fields


def test_another_autoencoder_or_data_is_refused(tmp_path: Path) -> None:
    config = second_run("train.steps=2")
    train_second(tmp_path / "run", config, tmp_path / "cache")
    file = checkpoint.newest(tmp_path / "run" / "states", print)
    assert file is not None
    tensors, numbers = checkpoint.load_tensors(file)
    numbers["notes"]["source"] = "2:another"
    checkpoint.save_tensors(file, tensors, numbers)
    with pytest.raises(UserError, match="its data or its autoencoder has changed"):
        train_second(tmp_path / "run", config, tmp_path / "cache")


def _with_source(run: Path, source: str) -> None:
    """Rewrites the newest state with another key of its data."""
    file = checkpoint.newest(run / "states", print)
    assert file is not None
    tensors, numbers = checkpoint.load_tensors(file)
    assert numbers["notes"]["source"].startswith("2:")
    numbers["notes"]["source"] = source
    checkpoint.save_tensors(file, {name: tensor.clone() for name, tensor in tensors.items()}, numbers)


def test_a_second_stage_of_an_earlier_version_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    train_second(run, second_run("train.steps=2"), cache)
    assert "could not be checked" not in capsys.readouterr().err
    _with_source(run, "0123456789abcdef")
    assert train_second(run, second_run("train.steps=3"), cache).step == 3
    assert capsys.readouterr().err.count("could not be checked") == 1
    train_second(run, second_run("train.steps=4"), cache)
    assert "could not be checked" not in capsys.readouterr().err, "the new state has a key that can be checked"


def test_a_first_stage_of_an_earlier_version_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    train_first(run, quiet_run("train.steps=1"))
    _with_source(run, "0123456789abcdef")
    assert train_first(run, quiet_run("train.steps=2")).step == 2
    err = capsys.readouterr().err
    assert err.count("could not be checked") == 1
    assert "the data has changed" not in err


def quiet_run(*overrides: str) -> AutoencoderRun:
    """A stage 1 without what takes time."""
    loss = "loss={perceptual: {kind: none}, adversarial: {weight: 0}}"
    return first_run(loss, "train.save_every=1", "train.preview_images=2", *overrides)


def test_a_run_goes_on_with_its_data_at_another_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("d"), [f"{i}.png" for i in range(4)], SIZE, SIZE)
    save(Path("other"), [f"{i}.png" for i in range(1, 5)], SIZE, SIZE)
    out = Path("run")

    def train(path: object, steps: int) -> int:
        return run_autoencoder(quiet_run(f"data.path={path}", f"train.steps={steps}"), out, None).step

    def recorded() -> str:
        return str(yaml.safe_load((out / "config.yaml").read_text())["data"]["path"])

    assert train("d", 1) == 1
    assert train(tmp_path / "d", 2) == 2
    assert recorded() == str(tmp_path / "d")
    Path("d").rename("images2")
    assert train("images2", 3) == 3
    assert recorded() == "images2"
    with pytest.raises(UserError, match="its data or its autoencoder has changed"):
        train("other", 4)
    assert recorded() == "images2", "a refused command leaves the run as it is"
    save(Path("images2"), ["more.png"], SIZE, SIZE)
    capsys.readouterr()
    assert train(tmp_path / "images2", 4) == 4, "a folder that has grown is reported, not refused"
    assert "the data has changed" in capsys.readouterr().err


def test_a_setting_that_names_the_same_place_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    assert not differ("start", "model", str(tmp_path / "model"))
    assert differ("start", "model", str(tmp_path / "other"))
    assert differ("train.batch", 2, 3)


def test_only_settings_that_do_no_harm_may_change(tmp_path: Path) -> None:
    train_first(tmp_path, first_run("train.steps=2"))
    with pytest.raises(UserError, match=r"train.batch = 2, not 3; give the same configuration"):
        train_first(tmp_path, first_run("train.batch=3"))
    with pytest.raises(UserError, match=r"a run that this command cannot resume.*give another folder"):
        RunFolder(tmp_path).claim(second_run())
    assert train_first(tmp_path, first_run("train.steps=3", "train.optimiser.learning_rate=1e-4")).step == 3


def test_a_run_begun_before_a_setting_existed_goes_on(tmp_path: Path) -> None:
    train_first(tmp_path, first_run("train.steps=2"))
    file = tmp_path / "config.yaml"
    raw = yaml.safe_load(file.read_text())
    del raw["loss"]["adversarial"]["lecam"], raw["train"]["max_skipped"]
    file.write_text(yaml.safe_dump(raw))
    assert train_first(tmp_path, first_run("train.steps=3")).step == 3
