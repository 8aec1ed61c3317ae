"""Tensors of which each process may have a part: torch's DTensor, recognised without importing it, which is slow."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


def in_parts(tensor: Tensor) -> bool:
    """Whether each process has a part of the tensor."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, which shares its memory; others as they are."""
    sharded: Any = tensor
    return sharded.to_local() if in_parts(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor; every process has to call it. Others as they are."""
    sharded: Any = tensor
    return sharded.full_tensor() if in_parts(tensor) else tensor


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The 2-norm over all tensors, sharded or not, float32, the same in all processes."""
    groups: dict[bool, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(in_parts(tensor), []).append(tensor)
    norms = [whole(nn.utils.get_total_norm(group)).float() for group in groups.values()]
    return norms[0] if len(norms) == 1 else nn.utils.get_total_norm(norms)
