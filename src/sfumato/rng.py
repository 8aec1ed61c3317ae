"""Named sources of randomness: generators derived from a seed and keys that name their purpose.

No generator state is stored in a checkpoint: the generator of step n derives from (seed, rank, n, purpose), so a
resumed run has the same random numbers as an uninterrupted one.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_WORDS = slice(3, 3 + 624)
"""The words of the Mersenne Twister in a generator's state, in units of 8 bytes: after the seed, two flags and the
index of the next word."""


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
    state = torch.Generator().manual_seed(0).get_state()
    words = state.numpy().view(np.uint64)
    words[_WORDS] = np.random.SeedSequence(seed).generate_state(_WORDS.stop - _WORDS.start, np.uint32)
    return state


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
