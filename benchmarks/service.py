"""Load and soak of the service: throughput, latencies and memory of `sfumato serve` at several numbers of clients.

    python -m benchmarks.service MODEL [--clients 1 4 16 64] [--requests 64] [--batch 8] [--lanes 0] [--steps 10]
    python -m benchmarks.service MODEL --soak 3000

Each client sends one request after the other, of one image with a seed of its own, and waits for the image. Beside it
the same without batches (--batch 1), which is what a service that serves one after the other does.
"""

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

PATIENCE = 600.0


@contextmanager
def served(model: Path, *options: object) -> Iterator[tuple[str, int]]:
    """The address and the process of a service on a free port."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["serve", model, "--port", 0, "--out", Path(folder) / "out", "--queue", 1000, *options]
        command = [sys.executable, "-m", "sfumato", *(str(word) for word in words)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            yield process.stdout.readline().rsplit(" ", 1)[-1].strip(), process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


async def requests(address: str, clients: int, count: int, body: dict[str, object]) -> list[float]:
    """Seconds of each of `count` requests, sent by so many clients."""
    seconds: list[float] = []
    seeds = iter(range(count))
    limits = httpx.Limits(max_connections=clients)

    async def one(client: httpx.AsyncClient) -> None:
        for seed in seeds:
            t_start = time.perf_counter()
            answer = await client.post("/v1/images/generations", json={**body, "seed": seed})
            answer.raise_for_status()
            seconds.append(time.perf_counter() - t_start)

    async with httpx.AsyncClient(base_url=address, timeout=PATIENCE, limits=limits) as client:
        await asyncio.gather(*(one(client) for _ in range(clients)))
    return seconds


def memory_of(process: int) -> float:
    """MiB of a process in memory (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def load(choice: argparse.Namespace, body: dict[str, object]) -> None:
    """Prints a row for each number of clients, with and without batches."""
    print("| clients | batches | images a second | median | 99th percentile |\n|--:|---|--:|--:|--:|")
    for label, options in (
        ("one by one", ["--batch", 1]),
        ("together", ["--batch", choice.batch, "--lanes", choice.lanes]),
    ):
        with served(choice.model, "--precision", choice.precision, *options) as (address, _):
            asyncio.run(requests(address, max(choice.clients), 2 * max(choice.clients), body))  # load, measure widths
            for clients in choice.clients:
                t_start = time.perf_counter()
                seconds = sorted(asyncio.run(requests(address, clients, max(choice.requests, 2 * clients), body)))
                rate = len(seconds) / (time.perf_counter() - t_start)
                last = seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))]
                middle = statistics.median(seconds)
                print(f"| {clients} | {label} | {rate:.2f} | {middle:.2f} s | {last:.2f} s |", flush=True)


def soak(choice: argparse.Namespace, body: dict[str, object]) -> None:
    """Prints the memory of the service along many requests."""
    parts = 10
    print("| requests | memory (MiB) | images a second |\n|--:|--:|--:|")
    with served(choice.model, "--precision", choice.precision, "--out-size", 4) as (address, process):
        for part in range(parts):
            t_start = time.perf_counter()
            count = choice.soak // parts
            asyncio.run(requests(address, 16, count, body))
            rate = count / (time.perf_counter() - t_start)
            print(f"| {(part + 1) * count:,} | {memory_of(process):.0f} | {rate:.1f} |", flush=True)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lanes", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--prompt", default="")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--soak", type=int, default=0, metavar="REQUESTS")
    choice = parser.parse_args()
    body: dict[str, object] = {"steps": choice.steps, "prompt": choice.prompt}
    (soak if choice.soak else load)(choice, body)


if __name__ == "__main__":
    main()
