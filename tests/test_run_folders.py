"""Run folders in trouble: two sessions at once, killed ones' leftovers, damage of every kind."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import sfumato
from command_line import Command, Runs, check, contents
from forks import COMMAND, Forks
from runs import Crash, Hooks, crash, first_run, saved, train_first
from sfumato import checkpoint
from sfumato.errors import UserError
from sfumato.locks import exclusive, lock_path
from sfumato.training.log import read_lines
from sfumato.training.run import RunFolder
from sfumato.training.state import TrainState

TINY = {"model": {"channels": 8, "channel_multipliers": [1, 1], "blocks_per_level": 1, "latent_channels": 4,
                  "attention": "none", "norm_groups": 4},
        "data": {"kind": "toy", "size": 32, "length": 8},
        "loss": {"perceptual": {"kind": "none"}, "adversarial": {"weight": 0}},
        "train": {"steps": 4, "batch": 2, "workers": 0, "precision": "float32", "save_every": 2}}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "given" / "tiny.yaml"
    path.parent.mkdir()
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, with states after 2 and 4."""
    path = tmp_path_factory.mktemp("finished") / "run"
    train_first(path, first_run("train.steps=4"))
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def _resumed(run: Path, steps: int = 6) -> TrainState:
    return train_first(run, first_run(f"train.steps={steps}"))


# ---- one session at a time

WRITERS: dict[str, Callable[[Runs, Path], list[Any]]] = {
    "autoencoder": lambda runs, out: ["train", "autoencoder", runs.first, "--out", out],
    "diffusion": lambda runs, out: ["train", "diffusion", runs.second, "--autoencoder", runs.autoencoder, "--out", out],
    "classifier": lambda runs, out: ["train", "classifier", "zoo:toy/classifier", "data.size=32",
                                     "--autoencoder", runs.autoencoder, "--out", out],
    "demo": lambda runs, out: ["demo", "--quick", "--out", out],
    "average": lambda runs, out: ["ema", runs.plain, "--width", 0.1, "--out", out],
    "replace-decoder": lambda runs, out: ["replace-decoder", runs.plain, runs.autoencoder, "--out", out],
    "quantize": lambda runs, out: ["quantize", runs.plain, "--out", out],
    "import": lambda runs, out: ["import", runs.first, out],
    "distill-decoder": lambda runs, out: ["distill-decoder", out, "--data", "toy", "--steps", 1],
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_a_second_writer_is_refused_at_once(command: Command, runs: Runs, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    if name == "distill-decoder":
        shutil.copytree(runs.plain, out)
    with exclusive(out):
        check(command(*WRITERS[name](runs, out)), f"is being written by process {os.getpid()} on ")
    assert out.exists() == (name == "distill-decoder")


def test_the_lock_is_held_while_a_training_goes_on(
    command: Command, config: Path, tmp_path: Path, forks: Forks
) -> None:
    """In a process of its own; when it is killed the same command goes on."""
    line = ["train", "autoencoder", str(config), "--out", str(tmp_path / "out")]
    long = [*line, "train.steps=100000", "train.log_every=1"]
    process = forks.start(COMMAND, long)
    log = tmp_path / "out" / "log.jsonl"
    while not (log.exists() and log.read_text()):
        assert process.poll() is None, process.output
        time.sleep(0.01)
    check(command(*long), f"is being written by process {process.pid} on ")
    process.kill()
    process.wait()
    steps = [json.loads(text)["step"] for text in log.read_text().splitlines()[:-1]]
    assert steps == list(range(1, len(steps) + 1))
    assert lock_path(tmp_path / "out").exists()
    done = max((step for step, _ in checkpoint.saved_steps(tmp_path / "out" / "states")), default=0)
    assert command(*line, f"train.steps={done + 2}", "train.log_every=1").code == 0
    assert not lock_path(tmp_path / "out").exists()


class _Several:
    """Two processes, of which this one leads or does not; `others` is what the others report."""

    def __init__(self, leads: bool, others: bool = False) -> None:
        self.leads, self.others = leads, others

    def any(self, flag: bool) -> bool:
        return flag or self.others


def test_of_several_processes_the_leading_one_holds_the_lock(tmp_path: Path) -> None:
    leader, other = RunFolder(tmp_path / "out"), RunFolder(tmp_path / "out")
    with leader.session(_Several(True)), other.session(_Several(False)):  # type: ignore[arg-type]
        pass
    with exclusive(tmp_path / "out"):
        with pytest.raises(UserError, match="is being written"), leader.session(_Several(True)):  # type: ignore[arg-type]
            pass
        with pytest.raises(SystemExit), other.session(_Several(False, others=True)):  # type: ignore[arg-type]
            pass


# ---- leftovers


def test_what_a_killed_session_left_is_removed_at_the_next_start(
    command: Command, config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    line = ("train", "autoencoder", config, "--out", out)
    assert command(*line).code == 0
    left = [
        "states/.tmpAb12Cd", "states/.step-00000006.safetensors.99.part", ".config.yaml.99.part", ".log.jsonl.7.part",
        "model/.config.yaml.99.part", "previews/.samples-00000004.png.99.part", ".tmpzZ0000",
        f"states/.step-00000004.safetensors.{os.getpid()}.part",
    ]  # fmt: skip
    for name in left:
        (out / name).write_bytes(b"half")
    for name in (".model.new", ".best.new", ".model.old"):
        (out / name).mkdir()
        (out / name / "autoencoder.safetensors").write_bytes(b"half")
    mine = [out / ".keep", out / "states" / "notes.part", out / "model" / ".tmp-of-mine"]
    for path in mine:
        path.write_text("mine")
    lock_path(out).write_text("{}")
    assert command(*line, "train.steps=5").code == 0
    hidden = {*out.rglob(".*"), *tmp_path.glob(".*")}
    assert hidden == {out / ".keep"}, "the model folder is replaced, and with it what lay in it"
    assert (out / "states" / "notes.part").read_text() == "mine"


def test_the_only_whole_copy_of_a_model_is_brought_back(command: Command, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = ("train", "autoencoder", config, "--out", out)
    assert command(*line).code == 0
    digest = sfumato.load(out).digest
    (out / "model").rename(out / ".model.old")
    assert sfumato.load(out).digest == digest
    with exclusive(out):
        RunFolder(out)._tidy()
    assert sfumato.load(out / "model").digest == digest
    assert not (out / ".model.old").exists()


def test_leftovers_of_living_processes_stay_where_several_write(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    for number in (os.getpid(), int(dead.stdout)):
        (tmp_path / f".0000.png.{number}.part").write_bytes(b"half")
    checkpoint.remove_leftovers(tmp_path, alone=False)
    assert [path.name for path in tmp_path.iterdir()] == [f".0000.png.{os.getpid()}.part"]
    checkpoint.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_a_resumed_run_lets_go_of_the_state_it_came_from(run: Path) -> None:
    seen: list[str] = []
    hooks = Hooks({5: lambda: seen.extend(line for line in Path("/proc/self/maps").read_text().splitlines())})
    train_first(run, first_run("train.steps=6"), hooks)
    assert seen
    assert [line for line in seen if str(run) in line] == []


# ---- damaged states


def _zeroed(path: Path) -> None:
    """Half of the tensors' bytes, as a disk does that lost its power."""
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start : start + (len(data) - start) // 2] = bytes((len(data) - start) // 2)
    path.write_bytes(data)


def _flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_zeroed, _flipped, lambda path: path.write_bytes(path.read_bytes()[:200])])
def test_a_damaged_newest_state_costs_the_steps_since_the_one_before(
    run: Path, damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(checkpoint.step_path(run / "states", 4))
    folder = RunFolder(run)
    folder.claim(first_run("train.steps=4"))
    folder.describe(print)
    messages = capsys.readouterr().out
    assert "checkpoint step-00000004.safetensors is damaged" in messages
    assert "resuming after step 2" in messages
    train_first(tmp_path / "straight", first_run("train.steps=6"))
    assert _resumed(run).step == 6
    one, other = saved(run), saved(tmp_path / "straight")
    assert one[1] == other[1]
    assert all(torch.equal(one[0][name], other[0][name]) for name in other[0])
    assert [step for step, _ in checkpoint.saved_steps(run / "states")] == [4, 6]


def test_states_that_are_all_damaged_are_refused_and_nothing_is_touched(
    command: Command, config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert command("train", "autoencoder", config, "--out", out).code == 0
    for _, path in checkpoint.saved_steps(out / "states"):
        _zeroed(path)
    before = contents(tmp_path)
    done = command("train", "autoencoder", config, "--out", out, "train.steps=6")
    check(done, "is damaged (the newest is step-00000004.safetensors): restore one from a copy, or remove that folder")
    assert "going on" not in done.err + done.out
    assert contents(tmp_path) == before


def test_a_later_state_that_was_damaged_goes_once_the_run_has_another(run: Path) -> None:
    """Else the run would go back to it, or count it among those that are kept."""
    _zeroed(checkpoint.step_path(run / "states", 4))
    with pytest.raises(Crash):
        train_first(run, first_run("train.steps=6", "train.save_every=1"), Hooks({4: crash}))
    assert [step for step, _ in checkpoint.saved_steps(run / "states")] == [2, 3]


def test_a_state_without_a_checksum_is_accepted_and_reported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint.step_path(run / "states", 4)
    tensors, numbers = checkpoint.load_tensors(path)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, {"numbers": json.dumps(numbers)})
    assert _resumed(run).step == 6
    assert "step-00000004.safetensors was saved without a checksum" in capsys.readouterr().out


# ---- run folders of many kinds of damage


def _rewritten(run: Path, change: Callable[[dict[str, torch.Tensor], Any], Any]) -> None:
    """The newest state with other tensors and numbers, and a checksum that fits: what is wrong must be seen anyway."""
    path = checkpoint.step_path(run / "states", 4)
    tensors, numbers = checkpoint.load_tensors(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    changed = change(tensors, numbers)
    checkpoint.save_tensors(path, tensors, numbers if changed is None else changed)


def _numbers(run: Path) -> Any:
    return checkpoint.load_tensors(checkpoint.step_path(run / "states", 4))[1]


def _with_header(run: Path, numbers: str) -> None:
    for step in (2, 4):
        path = checkpoint.step_path(run / "states", step)
        tensors, _ = checkpoint.load_tensors(path)
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, {"numbers": numbers})


def _number(name: str, value: object) -> Callable[[Path], None]:
    return lambda run: _rewritten(run, lambda tensors, numbers: {**numbers, name: value})


def _tensor(name: str, value: torch.Tensor) -> Callable[[Path], None]:
    return lambda run: _rewritten(run, lambda tensors, numbers: tensors.update({name: value}))


def _folder_at(name: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / name).unlink()
        (run / name).mkdir()

    return damage


def _file_at(name: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        shutil.rmtree(run / name, ignore_errors=True)
        (run / name).write_text("no folder")

    return damage


def _written(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes(data)


def _states_as_folders(run: Path) -> None:
    for _, path in checkpoint.saved_steps(run / "states"):
        path.unlink()
        path.mkdir()


def _states_as_links(run: Path) -> None:
    for _, path in checkpoint.saved_steps(run / "states"):
        path.unlink()
        path.symlink_to(run / "nowhere")


def _states_as_pipes(run: Path) -> None:
    for _, path in checkpoint.saved_steps(run / "states"):
        path.unlink()
        os.mkfifo(path)


REFUSED: dict[str, Callable[[Path], object]] = {
    "numbers name fields": _number("modules", 3),
    "numbers name methods": _number("load", 3),
    "a step that is a text": _number("step", "4"),
    "a step that is true": _number("step", True),
    "a step below zero": _number("step", -4),
    "a step with a fraction": _number("step", 4.5),
    "images that are a list": _number("images", [1]),
    "seconds without end": lambda run: _with_header(run, json.dumps({**_numbers(run), "seconds": float("inf")})),
    "notes that are a list": _number("notes", [1]),
    "a source that is a number": _number("notes", {"source": 3}),
    "logits that are a text": _number("notes", {"logits": "ab"}),
    "a checksum that is a number": lambda run: _with_header(run, json.dumps({**_numbers(run), "checksum": 7})),
    "no step": lambda run: _rewritten(run, lambda tensors, numbers: {k: v for k, v in numbers.items() if k != "step"}),
    "numbers that are no JSON": lambda run: _with_header(run, "{"),
    "numbers that are a list": lambda run: _with_header(run, "[1, 2]"),
    "numbers nested deeply": lambda run: _with_header(run, "[" * 100_000),
    "an index that is no number": _tensor("optimiser.autoencoder.first.exp_avg", torch.zeros(2)),
    "an index beyond the last": _tensor("optimiser.autoencoder.99999.exp_avg", torch.zeros(2)),
    "an index below zero": _tensor("optimiser.autoencoder.-1.exp_avg", torch.zeros(2)),
    "a moment that no optimiser keeps": _tensor("optimiser.autoencoder.0.__class__", torch.zeros(())),
    "a moment of another shape": _tensor("optimiser.autoencoder.0.exp_avg", torch.zeros(3, 1)),
    "a module that the run lacks": _tensor("module.other.weight", torch.zeros(2)),
    "a weight of another shape": _tensor("module.autoencoder.encoder.conv_in.weight", torch.zeros(3, 1)),
    "states that are folders": _states_as_folders,
    "states that are dangling links": _states_as_links,
    "states that are pipes": _states_as_pipes,
    "a configuration that is a list": _written("config.yaml", b"[1, 2]"),
    "a configuration that is not UTF-8": _written("config.yaml", b"a: caf\xe9"),
    "a configuration that is a folder": _folder_at("config.yaml"),
    "a log that is a folder": _folder_at("log.jsonl"),
    "previews that are a file": _file_at("previews"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_damaged_run_is_refused_in_one_sentence(run: Path, name: str) -> None:
    REFUSED[name](run)
    kept = {path: path.read_bytes() for path in (run / "states").iterdir() if path.is_file()}
    with pytest.raises(UserError) as refused:
        _resumed(run)
    assert "\n" not in str(refused.value)
    assert str(run) in str(refused.value)
    assert len(str(refused.value)) < 700
    assert {path: path.read_bytes() for path in kept} == kept


LOGS: dict[str, bytes] = {
    "not UTF-8": b'{"step": 2, "caf\xe9": 1}\n',
    "a list": b"[1, 2]\n",
    "a step that is a text": b'{"step": "2"}\n',
    "no step": b'{"loss": 2}\n',
    "zeros": bytes(64) + b"\n",
    "nested deeply": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("name", LOGS)
def test_broken_lines_are_set_aside_and_reported(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    log = run / "log.jsonl"
    whole = read_lines(log)
    damaged = LOGS[name] + log.read_bytes() + b'{"step": 4, "lo'
    log.write_bytes(damaged)
    assert read_lines(log) == whole
    _resumed(run)
    messages = " ".join(capsys.readouterr().err.split())
    assert f"1 line of {log} cannot be read, the first is line 1" in messages
    assert (run / "log.damaged-1.jsonl").read_bytes() == damaged
    lines = read_lines(log)
    assert lines[: len(whole)] == whole
    assert lines[-1]["step"] == 6
