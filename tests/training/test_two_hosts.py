"""Two hosts with addresses of their own: network namespaces, joined by a virtual cable."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEETING = """
from sfumato.training.workers import Workers

workers = Workers("cpu")
print("all have met", workers.world, workers.greatest(workers.rank))
workers.close()
"""


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


def test_processes_on_two_hosts_meet(hosts: list[str]) -> None:
    met = {"WORLD_SIZE": "2", "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29511", "GLOO_SOCKET_IFNAME": "cable"}
    environment = {**os.environ, **met, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0"}
    both = [
        subprocess.Popen(
            ["ip", "netns", "exec", host, sys.executable, "-c", MEETING],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, host in enumerate(hosts)
    ]
    for process in both:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0, out[-2000:]
        assert "all have met 2 1" in out
