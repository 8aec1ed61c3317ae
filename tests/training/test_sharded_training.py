"""Networks in parts: as with whole ones up to rounding, resumed bit for bit, by any number of processes."""

import json
import shutil
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from forks import Forks, ranks
from runs import assert_same_tensors, assert_same_up_to_rounding, logged, saved, second_run, train_second
from sfumato.conditioning.pretrained import PretrainedText, PretrainedTextConfig
from sfumato.errors import UserError
from sfumato.training.averages.ema import average_of
from sfumato.training.diffusion import ConditionalDenoiser
from sfumato.training.parts import whole, without_memory
from sfumato.training.sharding import shard_with_average
from sfumato.training.workers import Workers
from training.test_processes import TEXT

SETTINGS = {
    **dict(setting.split("=", 1) for setting in TEXT),
    "train.batch": "2",
    "train.steps": "3",
    "train.save_every": "3",
    "train.preview_every": "2",
    "train.shard": "full",
}
Session = tuple[str, dict[str, str], int | None]
"""Folder, settings, and the step after which a signal stops it."""
SESSIONS = """
import json, sys
from pathlib import Path
import runs

root = Path(sys.argv[1])
for name, settings, stop in json.loads(sys.argv[2]):
    hooks = runs.Hooks({} if stop is None else {stop - 1: runs.interrupt})
    runs.train_second(root / name, runs.second_run(*settings), root / "cache", hooks)
"""
"""The program of one process: trains stage 2 several times."""


def settings(changed: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in {**SETTINGS, **changed}.items()]


def alone(folder: Path, cache: Path, changed: dict[str, str]) -> None:
    """In one process."""
    train_second(folder, second_run(*settings(changed)), cache)


def in_processes(forks: Forks, world: int, root: Path, *wanted: Session) -> None:
    forks.preload("sfumato.training.sharding", "sfumato.training.state_files")
    listed = json.dumps([(name, settings(changed), stop) for name, changed, stop in wanted])
    started = [forks.start(SESSIONS, [root, listed], **rank) for rank in ranks(world)]
    assert [process.wait(300) for process in started] == [0] * world, started[0].output[-3000:]


def test_networks_in_parts_train_as_whole_ones_and_resume_in_any_number_of_processes(
    tmp_path: Path, forks: Forks
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    whole, parts, broken = ("whole", {"train.shard": "none"}, None), ("parts", {}, None), ("broken", {}, 2)
    in_processes(forks, 2, tmp_path, whole, parts, broken, ("broken", {}, None))
    assert (tmp_path / "parts" / "states" / "step-00000003" / "state.json").exists()
    assert_same_up_to_rounding(tmp_path / "whole", tmp_path / "parts")
    losses = [
        [line["loss"] for line in logged(tmp_path / name) if "loss" in line] for name in ("whole", "parts", "broken")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[1] == losses[2]
    assert len(losses[0]) == 3
    assert_same_tensors(saved(tmp_path / "parts")[0], saved(tmp_path / "broken")[0])
    assert saved(tmp_path / "parts")[1] == saved(tmp_path / "broken")[1]

    more = {"train.steps": "4"}
    in_processes(forks, 4, tmp_path, ("parts", more, None), ("whole", {**more, "train.shard": "none"}, None))
    assert_same_up_to_rounding(tmp_path / "whole", tmp_path / "parts")
    states = tmp_path / "parts" / "states"
    assert sorted(path.name for path in states.iterdir()) == ["step-00000003", "step-00000004"]
    shutil.copytree(tmp_path / "parts", tmp_path / "alone")
    alone(tmp_path / "alone", cache, {"train.steps": "5"})
    numbers = saved(tmp_path / "alone")[1]
    assert (numbers["step"], numbers["images"]) == (5, saved(tmp_path / "parts")[1]["images"] + 4)

    damaged = next((states / "step-00000004").glob("shard-00003*"))
    damaged.write_bytes(damaged.read_bytes()[:-8] + bytes(8))
    assert saved(tmp_path / "parts")[1]["step"] == 3, "back to the state before"


def test_other_networks_and_optimisers_train_in_parts_as_whole_ones(tmp_path: Path, forks: Forks) -> None:
    """The transformer as in one process with the batches of both; Muon shares its work out among whole networks too."""
    (tmp_path / "cache").mkdir()
    other = {"denoiser": "{kind: dit, patch: 1, width: 32, depth: 2, heads: 2}"}
    muon = {"train.optimiser.method": "muon", "train.optimiser.weight_decay": "0.1", "train.steps": "2"}
    whole_muon = ("whole muon", {**muon, "train.shard": "none"}, None)
    in_processes(forks, 2, tmp_path, ("dit", other, None), ("muon", muon, None), whole_muon)
    alone(tmp_path / "whole dit", tmp_path / "cache", {**other, "train.shard": "none", "train.batch": "4"})
    for name in ("dit", "muon"):
        assert_same_up_to_rounding(tmp_path / f"whole {name}", tmp_path / name)


def test_what_sharding_does_not_support_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"train\.power_averages are saved whole"):
        second_run("train.shard=full", "train.power_averages={}")


class Linear(torch.nn.Linear):
    """Stands for a text encoder of the library transformers."""

    config = types.SimpleNamespace(hidden_size=3)


@pytest.fixture
def group_of_one() -> Iterator[Workers]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Workers()
    dist.destroy_process_group()


def test_parts_begin_with_the_bits_of_the_whole_networks_and_encoders_stay(group_of_one: Workers) -> None:
    """Rank 0 gives every parameter and buffer away; what is frozen and no part of the network is not copied."""
    encoder = Linear(2, 3)
    text = PretrainedText(PretrainedTextConfig(source="nowhere"), encoder, None)
    networks = ConditionalDenoiser(torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3)), text)
    before = {name: tensor.clone() for name, tensor in networks.state_dict().items()}
    weight = encoder.weight.clone()
    averaged = average_of(without_memory(networks))
    copied = shard_with_average(networks, networks, averaged, group_of_one)
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
