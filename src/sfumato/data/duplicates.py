"""Exact and near duplicates of images, by the 64-bit difference hash of their brightness."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NEAR = 4
"""Most bits in which the hashes of near duplicates differ."""
_COUNTS = np.array([number.bit_count() for number in range(2**16)], np.uint8)
"""Number of set bits in each 16-bit number."""


def difference_hash(image: Image.Image) -> int:
    """64 bits: whether each of 8 × 8 places is brighter than its right neighbour, on a grey image of 8 × 9."""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = (small[:, :-1] > small[:, 1:]).reshape(-1)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_pairs(hashes: Sequence[int], most: int = NEAR) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, whose hashes differ in at most `most` bits.

    At least one of most + 1 blocks of bits is equal in such a pair, so only images that share a block are compared.
    """
    values = np.array(hashes, np.uint64)
    pairs: set[tuple[int, int]] = set()
    edges = np.linspace(0, 64, most + 2).round().astype(int)
    for start, end in pairwise(edges):
        mask = np.uint64((1 << int(end - start)) - 1)
        block = (values >> np.uint64(start)) & mask
        order = np.argsort(block, kind="stable")
        bounds = np.flatnonzero(np.diff(block[order])) + 1
        for group in np.split(order, bounds):
            for place, i in enumerate(group[:-1]):
                rest = group[place + 1 :]
                near = rest[_bits(values[rest] ^ values[i]) <= most]
                pairs.update((min(int(i), int(j)), max(int(i), int(j))) for j in near)
    return sorted(pairs)


def groups_of(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Numbers that pairs connect, each group ascending, in order of their first."""
    leader: dict[int, int] = {}

    def find(number: int) -> int:
        while leader.setdefault(number, number) != number:
            leader[number] = number = leader[leader[number]]
        return number

    for i, j in pairs:
        a, b = find(i), find(j)
        leader[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = defaultdict(list)
    for number in sorted(leader):
        groups[find(number)].append(number)
    return list(groups.values())


def _bits(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many bits are set."""
    return _COUNTS[np.ascontiguousarray(values).view(np.uint16).reshape(-1, 4)].sum(1, dtype=np.int64)
