"""Named sources of randomness: generators derived from a seed and keys that name their purpose.

No generator state is stored in a checkpoint: the generator of step n derives from (seed, rank, n, purpose), so a
resumed run has the same random numbers as an uninterrupted one.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from sfumato import twister

BLOCK = 16
"""torch makes float32 normal numbers on the CPU in blocks of this many, each from as many words."""
FEW = 1 << 18
"""Numbers that are drawn in 1.7 ms: below, skipping some of them saves no time."""


def derive(seed: int, *keys: int | str) -> int:
    """Mixes a seed with keys into a 63-bit seed; the same arguments give the same number on every machine."""
    text = "\x1f".join([str(int(seed)), *(f"{type(key).__name__}:{key}" for key in keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *keys: int | str) -> torch.Generator:
    """A CPU generator for the purpose named by `keys`.

    `torch.Generator.manual_seed` keeps 32 bits of a seed on the CPU, so that two of 50,000 samples would share their
    noise with probability 0.25. Here the whole state of the Mersenne Twister is derived from the seed instead.
    """
    made = torch.Generator()
    made.set_state(_twister_state(derive(seed, *keys)))
    return made


def numpy_generator(seed: int, *keys: int | str) -> np.random.Generator:
    """The same with numpy, for reading threads, in which torch would start a thread pool of its own."""
    return np.random.default_rng(derive(seed, *keys))


@contextmanager
def seeded(seed: int, *keys: int | str, device: torch.device) -> Iterator[None]:
    """Within the block torch's global generators are seeded for `keys`; afterwards they are as before.

    For operations that accept no generator: dropout layers and the initialisation of weights.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive(seed, *keys))  # the GPU's generators keep all 64 bits
        torch.set_rng_state(_twister_state(derive(seed, *keys)))
        yield


def _twister_state(seed: int) -> Tensor:
    """The state (bytes) of a CPU generator whose 624 words are all derived from `seed` by numpy's SeedSequence."""
    words = np.random.SeedSequence(seed).generate_state(twister.N, np.uint32)
    return twister.seeded_state(words.astype(np.uint32, copy=False))


class OwnRows:
    """Gaussian noise of which a process needs some rows: those of one large `torch.randn`, without drawing the others.

    Args:
        source: a CPU generator that nothing else draws from.
        rows: (A, W, B): the rows of A micro-batches, in each those of W processes, of each B.
        rank: the process whose rows are drawn.
    """

    def __init__(self, source: torch.Generator, rows: tuple[int, int, int], rank: int) -> None:
        self._source, self._rows, self._rank = source, rows, rank
        self._behind = 0
        """Words that belong to rows of others and have not been skipped yet."""

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """The process's rows (A, B, *shape), float32, of the next `torch.randn` of (A · W · B, *shape)."""
        parts, world, batch = self._rows
        own = batch * math.prod(shape)
        if world == 1 or own % BLOCK or parts * world * own < FEW:  # BLOCK: one would have numbers of two processes
            self._skip(0)
            return torch.randn(*self._rows, *shape, generator=self._source)[:, self._rank]
        drawn = []
        for _ in range(parts):
            self._skip(self._rank * own)
            drawn.append(torch.randn(batch, *shape, generator=self._source))
            self._behind = (world - 1 - self._rank) * own
        return torch.stack(drawn)

    def _skip(self, words: int) -> None:
        twister.skip(self._source, self._behind + words)
        self._behind = 0


class SampleNoise:
    """Gaussian noise with one generator per sample, on the CPU: sample i depends on its own seed alone.

    Call it with a shape (B, ...) where B is the number of seeds; successive calls continue the streams.
    """

    def __init__(self, seeds: Sequence[int], purpose: str = "sample", device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._generators = [generator(seed, purpose) for seed in seeds]

    @property
    def samples(self) -> int:
        """The number of seeds."""
        return len(self._generators)

    def __call__(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Noise of the given shape (B, ...); raises ValueError if B is not the number of seeds."""
        if shape[0] != len(self._generators):
            raise ValueError(f"noise for {shape[0]} samples was requested from {len(self._generators)} generators")
        noise = [torch.randn(tuple(shape[1:]), generator=g, dtype=dtype) for g in self._generators]
        return torch.stack(noise).to(self.device, non_blocking=True)
