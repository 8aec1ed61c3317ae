"""A training in several processes, on paper: memory of each, bytes they exchange, and where more of them stop helping.

A ring over N processes sends (N - 1) / N of the data per pass (Patarasu and Yuan 2009): DistributedDataParallel adds
up the gradients in two passes a step; FSDP2 gathers the weights twice and scatters the gradients once, each
micro-batch (Rajbhandari et al. 2020, section 7).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sfumato.estimate.memory import FLOAT, Memory

INSIDE = 300e9
"""Bytes a second between the GPUs of one host, assumed: NVLink of an A100, one direction."""
OVERLAP = 2 / 3
"""The part of a step during which exchanges are hidden: gradients are sent while the backward pass continues."""
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters that matter where networks are in parts.

    `outside` belong to no block and `largest` is the largest block: they are whole while they compute.
    """

    trained: int
    frozen: int
    outside: int
    largest: int


@dataclass(frozen=True)
class Processes:
    """How many, how many of them share a host, and bytes a second between two hosts."""

    count: int
    shard: Literal["none", "full"]
    a_host: int
    between: float

    @property
    def hosts(self) -> int:
        """The number of hosts."""
        return math.ceil(self.count / self.a_host)


def memory_of_process(memory: Memory, sizes: Sizes, processes: Processes) -> Memory:
    """Memory of one of the processes.

    In parts: its share of everything that is trained; and whole, with their gradients, what lies outside of the blocks,
    and the block that computes, beside the next one, whose weights are being gathered.
    """
    if processes.shard == "none" or processes.count == 1:
        return memory
    N, frozen = processes.count, FLOAT * sizes.frozen
    return Memory(
        weights=(memory.weights - frozen) // N + frozen + FLOAT * (sizes.outside + 2 * sizes.largest),
        gradients=memory.gradients // N + FLOAT * (sizes.outside + sizes.largest),
        optimiser=memory.optimiser // N,
        averages=memory.averages // N,
        activations=memory.activations,
    )


def bytes_a_step(trained: int, processes: Processes, accumulate: int) -> float:
    """Bytes that each process sends, and receives, in a step, for this many trained parameters."""
    N = processes.count
    passes = 2 if processes.shard == "none" else 3 * accumulate
    return passes * (N - 1) / N * FLOAT * trained


def exchange_seconds(trained: int, processes: Processes, accumulate: int) -> float:
    """Seconds of these exchanges: inside each host over its own links, then between hosts over one link of each."""
    passes = 2 if processes.shard == "none" else 3 * accumulate
    size = passes * FLOAT * trained
    within = min(processes.count, processes.a_host)
    inside = (within - 1) / within * size / INSIDE
    return inside + (processes.hosts - 1) / processes.hosts * size / processes.between


@dataclass(frozen=True)
class Scaled:
    """A step in this many processes: seconds, and the share of it that computes."""

    count: int
    step: float
    efficiency: float


def scaled(step: float, trained: int, processes: Processes, accumulate: int, overlap: float = OVERLAP) -> Scaled:
    """A step of one process of `step` seconds, in several: what is exchanged beyond `overlap` of it is waited for."""
    exchange = exchange_seconds(trained, processes, accumulate)
    longer = step + max(0.0, exchange - overlap * step)
    return Scaled(processes.count, longer, step / longer)


def strong(step: float, trained: int, batch: int, processes: Processes, counts: Sequence[int] = COUNTS) -> list[Scaled]:
    """The same samples a step in more and more processes, until each has one: `step` seconds for all `batch` in one."""
    return [
        scaled(step / count, trained, Processes(count, processes.shard, processes.a_host, processes.between), 1)
        for count in counts
        if count <= batch
    ]
