"""Two processes train the model that one would with the batches of both, through the command that users type."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from forks import COMMAND, Forked, Forks, ranks
from runs import FIRST_STAGE, SECOND_STAGE, assert_same_up_to_rounding, first_run, logged, train_first
from sfumato.cli.training_runs import run_autoencoder, run_diffusion
from sfumato.config import apply_overrides, parse
from sfumato.model_folder import load
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.workers import Workers

TOY = {"kind": "toy", "size": 32, "length": 10}
GENTLE = [
    "train.optimiser.precision=float32",
    "train.optimiser.warmup_steps=0",
    "train.optimiser.learning_rate=1e-4",
    "train.steps=3",
]
KL = [
    *GENTLE,
    "loss.output_variance=true",
    "loss.adversarial={weight: 0.5, start: 1, channels: 16, layers: 1, norm: group, lecam: 0.1}",
]
VQ = [
    *GENTLE,
    "model.bottleneck={kind: vq, codes: 24, kmeans_init: true, revive_every: 2}",
    "loss.adversarial={weight: 0.5, start: 1, adaptive: false, channels: 16, layers: 1, norm: group}",
    "train.accumulate=2",
]
ORIGINAL = "conditioner.initial=original"
"""Larger tables make some gradients so small that Adam turns their rounding into steps."""
TEXT = [
    *GENTLE,
    ORIGINAL,
    "train.condition_dropout=0.5",
    "train.accumulate=2",
    "objective.stratified=true",
    "objective.condition_mean=1",
    "mirrored=true",
]


FIRST_STAGES = """
import json, os, sys
from pathlib import Path
import torch
import torch.distributed as dist
import runs

exchanges = 0
all_reduce = dist.all_reduce

def counted(*arguments, **named):
    global exchanges
    exchanges += 1
    return all_reduce(*arguments, **named)

dist.all_reduce = counted
for name, overrides in {cases!r}.items():
    exchanges = 0
    state = runs.train_first(Path(sys.argv[1]) / name, runs.first_run(*overrides, "train.batch=2"))
    sums = {{key: tensor.double().abs().sum().item() for key, tensor in state.tensors().items() if "module" in key}}
    measured = {{"sums": sums, "exchanges": exchanges / state.step}}
    (Path(sys.argv[1]) / f"{{name}}-{{os.environ['RANK']}}.json").write_text(json.dumps(measured))
"""
ABOUT_THE_LOSSES = {"reconstruction", "nll", "regulariser", "adversarial", "adaptive_weight", "discriminator"}


def in_two_processes(forks: Forks, code: str, *arguments: object) -> list[Forked]:
    """The processes that a launcher would start."""
    return [forks.start(code, arguments, **rank) for rank in ranks()]


def finished(both: list[Forked]) -> str:
    """The output of the processes. Fails if one of them failed."""
    assert [process.wait() for process in both] == [0, 0], "\n".join(process.output[-3000:] for process in both)
    return "".join(process.output for process in both)


def raw(stage: dict[str, Any], folder: Path) -> tuple[dict[str, Any], str]:
    """A configuration for the toy world, and the file that holds it."""
    stage = {**stage, "data": TOY}
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(stage))
    return stage, str(file)


def test_two_processes_train_the_first_stage_that_one_does(tmp_path: Path, forks: Forks) -> None:
    cases = {"kl": KL, "vq": VQ}
    for name in cases:  # both would create the folders at the same time; a command lets the first one do it
        (tmp_path / "two" / name).mkdir(parents=True)
    both = in_two_processes(forks, FIRST_STAGES.format(cases=cases), tmp_path / "two")
    for name, overrides in cases.items():
        train_first(tmp_path / "one" / name, first_run(*overrides, "train.batch=4"))
    finished(both)
    for name in cases:
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        assert_same_up_to_rounding(one, two)
        assert [line["step"] for line in logged(two)] == [line["step"] for line in logged(one)]
        for line, other in zip(logged(one), logged(two), strict=True):
            assert line.keys() == other.keys()
            terms = {key: value for key, value in line.items() if key in ABOUT_THE_LOSSES}
            assert terms == pytest.approx({key: other[key] for key in terms}, rel=2e-3, abs=1e-5), "means over all"
        ranks = [json.loads((tmp_path / "two" / f"{name}-{rank}.json").read_text()) for rank in range(2)]
        assert ranks[0]["sums"] == ranks[1]["sums"], "weights, codes, counts and averages agree over the ranks"
        assert ranks[0]["exchanges"] < 10, "DistributedDataParallel exchanges gradients in buckets, not one by one"


def test_two_processes_encode_and_train_the_second_stage_that_one_does(tmp_path: Path, forks: Forks) -> None:
    stage, _ = raw(FIRST_STAGE, tmp_path)
    run_autoencoder(parse(apply_overrides(stage, ["train.steps=1"]), AutoencoderRun, "first"), tmp_path / "first", None)
    stage, file = raw(SECOND_STAGE, tmp_path)
    command = ["train", "diffusion", file, "--autoencoder", tmp_path / "first"]
    both = in_two_processes(forks, COMMAND, *command, "--out", tmp_path / "two", *TEXT, "train.batch=2")
    config = parse(apply_overrides(stage, [*TEXT, "train.batch=4"]), DiffusionRun, "one")
    run_diffusion(config, load(tmp_path / "first"), tmp_path / "one", None)
    assert finished(both).count("model: ") == 1, "one process speaks"
    assert_same_up_to_rounding(tmp_path / "one", tmp_path / "two")
    one, two = ([line["loss"] for line in logged(tmp_path / name) if "loss" in line] for name in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-3), "the logged loss is that of all processes"
    assert load(tmp_path / "two").config.classes == load(tmp_path / "one").config.classes


def test_a_process_alone_chooses_its_device_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `sfumato estimate` does, which counts on the CPU and then measures on the GPU."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)  # what `demo --device cpu` leaves behind in its process
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [Workers(device).device.type for device in ("cpu", None, "cpu")] == ["cpu", "cuda", "cpu"]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert Workers().device.type == "cpu"
    monkeypatch.undo()
    alone = Workers("cpu")
    assert (alone.rank, alone.world, alone.leads, alone.any(True), alone.mean(2.5)) == (0, 1, True, True, 2.5)
    assert alone.greatest(2) == 2
