"""Two hosts with addresses of their own: network namespaces, joined by a virtual cable."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from forks import LAUNCHER, Forks
from runs import FIRST_STAGE, SECOND_STAGE, assert_same_up_to_rounding
from sfumato.cli.training_runs import run_autoencoder, run_diffusion
from sfumato.config import apply_overrides, parse
from sfumato.model_folder import load
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.diffusion_run import DiffusionRun
from training.test_processes import TEXT, raw

LAUNCH = f"""
import ctypes, sys

with open("/run/netns/" + sys.argv.pop(1)) as host:
    if ctypes.CDLL(None, use_errno=True).setns(host.fileno(), 0x40000000):  # CLONE_NEWNET: from here on in that host
        raise OSError(ctypes.get_errno(), "setns")
{LAUNCHER}"""
"""The code of a process that is `torchrun` with its arguments on the host that the first one names."""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """The names of two namespaces, with the addresses 10.77.0.1 and 10.77.0.2 on the interface `cable`."""
    if shutil.which("ip") is None:
        pytest.skip("there is no ip command")
    names = [f"sfumato{os.getpid()}{letter}" for letter in "ab"]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.decode().strip()}")
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            for link in ("cable", "lo"):
                ip("-n", name, "link", "set", link, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_two_hosts_train_what_one_process_does(hosts: list[str], tmp_path: Path, forks: Forks) -> None:
    """By the command of docs/scale.md for two machines, one process on each."""
    stage, _ = raw(FIRST_STAGE, tmp_path)
    run_autoencoder(parse(apply_overrides(stage, ["train.steps=1"]), AutoencoderRun, "first"), tmp_path / "first", None)
    stage, file = raw(SECOND_STAGE, tmp_path)
    forks.preload("torch.distributed.run")
    here = ["--master_addr", "10.77.0.1", "--master_port", "29511"]
    command = ["train", "diffusion", file, "--autoencoder", tmp_path / "first", "--out", tmp_path / "two"]
    both = []
    for rank, host in enumerate(hosts):
        launch = ["--nnodes", 2, "--node_rank", rank, "--nproc_per_node", 1, *here, "-m", "sfumato"]
        arguments = [host, *launch, *command, *TEXT, "train.batch=2"]
        both.append(forks.start(LAUNCH, arguments, GLOO_SOCKET_IFNAME="cable", OMP_NUM_THREADS="1"))
    config = parse(apply_overrides(stage, [*TEXT, "train.batch=4"]), DiffusionRun, "one")
    run_diffusion(config, load(tmp_path / "first"), tmp_path / "one", None)
    assert [process.wait(240) for process in both] == [0, 0], "\n".join(process.output[-3000:] for process in both)
    assert "model: " in both[0].output
    assert "model: " not in both[1].output
    assert_same_up_to_rounding(tmp_path / "one", tmp_path / "two")
