"""Which compositions are reserved for the held-out split.

Two rules, both fixed and independent of the seed:

- *bindings*: eight (shape, colour) pairs, one for every shape and every colour, so each atom is still seen in training
  with all seven other partners;
- *combinations*: one in eight of the combinations in an image with several objects, by hash: (shape, colour,
  relation, shape, colour) of a pair or of two neighbours in a row, with "A above B" and "B below A" the same
  combination, and (count, shape, colour) of a group.

A training scene contains none of them, a held-out scene at least one.
"""

import hashlib
from functools import lru_cache

from sfumato.data.toyworld.vocabulary import COLOURS, SHAPES

_MIRRORED = {"below": "above", "right of": "left of"}
_COLOUR_INDEX = {name: index for index, name in enumerate(COLOURS)}


def reserved_binding(shape: str, colour: str) -> bool:
    """Whether this colour of this shape is never seen in training."""
    return (3 * SHAPES.index(shape) + 5) % len(SHAPES) == _COLOUR_INDEX[colour]


def _one_in_eight(text: str) -> bool:
    return hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % 8 == 0


@lru_cache(maxsize=16384)
def reserved_relation(first: tuple[str, str], relation: str, second: tuple[str, str]) -> bool:
    """Whether two (shape, colour) objects in this relation are never seen together in training."""
    if relation in _MIRRORED:
        first, relation, second = second, _MIRRORED[relation], first
    return _one_in_eight(f"{' '.join(first)} {relation} {' '.join(second)}")


@lru_cache(maxsize=1024)
def reserved_group(count: int, shape: str, colour: str) -> bool:
    """Whether this many objects of this shape and colour are never seen in training."""
    return _one_in_eight(f"{count} {shape} {colour}")
