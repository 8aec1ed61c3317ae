"""Load of the service: throughput and latencies of `sfumato serve` at several numbers of clients.

    python -m benchmarks.service MODEL [--clients 1 4 16 64] [--requests 64] [--batch 8] [--lanes 0] [--steps 10]

Each client sends one request after the other, of one image with a seed of its own, and waits for the image. Beside it
the same without batches (--batch 1), which is what a service that serves one after the other does.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import httpx

from benchmarks.service_process import served

PATIENCE = 600.0


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


def load(choice: argparse.Namespace, body: dict[str, object]) -> None:
    """Prints a row for each number of clients, with and without batches."""
    print("| clients | batches | images a second | median | 99th percentile |\n|--:|---|--:|--:|--:|")
    for label, options in (
        ("one by one", ["--batch", 1]),
        ("together", ["--batch", choice.batch, "--lanes", choice.lanes]),
    ):
        common = ["--precision", choice.precision, "--queue", 1000]
        with tempfile.TemporaryDirectory() as out, served(choice.model, Path(out), *common, *options) as (address, _):
            asyncio.run(requests(address, max(choice.clients), 2 * max(choice.clients), body))  # load, measure widths
            for clients in choice.clients:
                t_start = time.perf_counter()
                seconds = sorted(asyncio.run(requests(address, clients, max(choice.requests, 2 * clients), body)))
                rate = len(seconds) / (time.perf_counter() - t_start)
                last = seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))]
                middle = statistics.median(seconds)
                print(f"| {clients} | {label} | {rate:.2f} | {middle:.2f} s | {last:.2f} s |", flush=True)


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
    choice = parser.parse_args()
    body: dict[str, object] = {"steps": choice.steps, "prompt": choice.prompt}
    load(choice, body)


if __name__ == "__main__":
    main()
