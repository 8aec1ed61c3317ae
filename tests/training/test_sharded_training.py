"""Networks in parts: as with whole ones up to rounding, resumed bit for bit, by any number of processes."""

import multiprocessing
import os
import shutil
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import runs
from forks import ranks
from runs import assert_same_tensors, assert_same_up_to_rounding, logged, saved, second_run, train_second
from sfumato.conditioning.pretrained import PretrainedText, PretrainedTextConfig
from sfumato.errors import UserError
from sfumato.training.averages.ema import average_of
from sfumato.training.diffusion import ConditionalDenoiser
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.parts import whole, without_memory
from sfumato.training.sharding import shard_with_average
from sfumato.training.workers import Workers
from training.test_processes import TEXT

SETTINGS = {
    **dict(setting.split("=", 1) for setting in TEXT),
    "train.batch": "2",
    "train.steps": "3",
    "train.save_every": "3",
    "train.shard": "full",
}
Session = tuple[str, dict[str, str], int | None]
"""Folder, settings, and the step after which a signal stops it."""


def config(changed: dict[str, str]) -> DiffusionRun:
    return second_run(*(f"{key}={value}" for key, value in {**SETTINGS, **changed}.items()))


def sessions(rank: int, world: int, port: str, root: Path, wanted: Sequence[Session]) -> None:
    """What one of the processes does: trains stage 2 several times."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    for name, changed, stop in wanted:
        hooks = runs.Hooks({} if stop is None else {stop - 1: runs.interrupt})
        train_second(root / name, config(changed), root / "cache", hooks)


def in_processes(world: int, root: Path, *wanted: Session) -> None:
    """Forked from a server that has imported all, which takes longer than the training."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sfumato.training.sharding", "sfumato.training.state_files", "accelerate"])
    port = ranks()[0]["MASTER_PORT"]
    started = [context.Process(target=sessions, args=(rank, world, port, root, wanted)) for rank in range(world)]
    for process in started:
        process.start()
    for process in started:
        process.join(300)
        process.kill()
    assert [process.exitcode for process in started] == [0] * world


def test_networks_in_parts_train_as_whole_ones_and_resume_in_any_number_of_processes(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    whole, parts, broken = ("whole", {"train.shard": "none"}, None), ("parts", {}, None), ("broken", {}, 2)
    other = {"denoiser": "{kind: dit, patch: 1, width: 32, depth: 2, heads: 2}"}
    muon = {"train.optimiser.method": "muon", "train.optimiser.weight_decay": "0.1", "train.steps": "2"}
    alike = [
        (f"{one} {name}", {**changed, "train.shard": shard}, None)
        for name, changed in (("dit", other), ("muon", muon))
        for one, shard in (("whole", "none"), ("parts", "full"))
    ]
    in_processes(2, tmp_path, whole, parts, broken, ("broken", {}, None), *alike)
    for name in ("dit", "muon"):
        assert_same_up_to_rounding(tmp_path / f"whole {name}", tmp_path / f"parts {name}")
    assert (tmp_path / "parts" / "states" / "step-00000003" / "state.json").exists()
    assert_same_up_to_rounding(tmp_path / "whole", tmp_path / "parts")
    losses = [[line["loss"] for line in logged(tmp_path / name)[::2]] for name in ("whole", "parts")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

    assert_same_tensors(saved(tmp_path / "parts")[0], saved(tmp_path / "broken")[0])
    assert saved(tmp_path / "parts")[1] == saved(tmp_path / "broken")[1]

    more = {"train.steps": "4"}
    in_processes(4, tmp_path, ("parts", more, None), ("whole", {**more, "train.shard": "none"}, None))
    assert_same_up_to_rounding(tmp_path / "whole", tmp_path / "parts")
    states = tmp_path / "parts" / "states"
    assert sorted(path.name for path in states.iterdir()) == ["step-00000003", "step-00000004"]
    shutil.copytree(tmp_path / "parts", tmp_path / "alone")
    train_second(tmp_path / "alone", config({"train.steps": "5"}), tmp_path / "cache")
    numbers = saved(tmp_path / "alone")[1]
    assert (numbers["step"], numbers["images"]) == (5, saved(tmp_path / "parts")[1]["images"] + 4)

    damaged = next((states / "step-00000004").glob("shard-00003*"))
    damaged.write_bytes(damaged.read_bytes()[:-8] + bytes(8))
    assert saved(tmp_path / "parts")[1]["step"] == 3, "back to the state before"


def test_what_sharding_does_not_support_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"train\.power_averages are saved whole"):
        second_run("train.shard=full", "train.power_averages={}")


class Linear(torch.nn.Linear):
    """Stands for a text encoder of the library transformers."""

    config = types.SimpleNamespace(hidden_size=3)


@pytest.fixture
def alone() -> Iterator[Workers]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Workers()
    dist.destroy_process_group()


def test_parts_begin_with_the_bits_of_the_whole_networks_and_encoders_stay(alone: Workers) -> None:
    """Rank 0 gives every parameter and buffer away; what is frozen and no part of the network is not copied."""
    encoder = Linear(2, 3)
    text = PretrainedText(PretrainedTextConfig(source="nowhere"), encoder, None)
    networks = ConditionalDenoiser(torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3)), text)
    before = {name: tensor.clone() for name, tensor in networks.state_dict().items()}
    weight = encoder.weight.clone()
    averaged = average_of(without_memory(networks))
    copied = shard_with_average(networks, networks, averaged, alone)
    copied.gather()
    for module in (networks, averaged, copied.module):
        assert_same_tensors(before, {name: whole(tensor) for name, tensor in module.state_dict().items()})
        assert module.conditioner.encoder is encoder
    copied.release()
    assert all(tensor.is_meta for tensor in copied.module.state_dict().values())
    assert torch.equal(encoder.weight, weight)


def test_averages_share_a_frozen_encoder() -> None:
    text = PretrainedText(PretrainedTextConfig(source="nowhere"), Linear(2, 3), None)
    assert average_of(text).encoder is text.encoder
