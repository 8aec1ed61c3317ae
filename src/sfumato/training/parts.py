"""Tensors of which each process may have a part: torch's DTensor, recognised without importing it, which is slow.

And copies of networks, in which frozen text encoders are not copied: they are no submodules, but attributes.
"""

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sfumato.conditioning.pretrained import PretrainedText

M = TypeVar("M", bound=nn.Module)


def texts_of(module: nn.Module) -> list[PretrainedText]:
    """The conditioners with a frozen text encoder."""
    return [part for part in module.modules() if isinstance(part, PretrainedText)]


def copied(module: M, shared: Iterable[Tensor] = ()) -> M:
    """A copy of a module that shares the tensors `shared`, and frozen text encoders, with it."""
    memo: dict[int, object] = {id(tensor): tensor for tensor in shared}
    return copy.deepcopy(module, memo | {id(part.encoder): part.encoder for part in texts_of(module)})


def without_memory(module: M) -> M:
    """A copy whose parameters and buffers take no memory (meta device)."""
    memo: dict[int, object] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        made = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
    return copy.deepcopy(module, memo | {id(part.encoder): part.encoder for part in texts_of(module)})


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


def whole_like(like: Tensor, rows: Tensor) -> Tensor:
    """All of a tensor that is in parts as `like` is, of which this process has `rows`; every process has to call it."""
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    made = DTensor.from_local(
        rows, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return made.full_tensor()


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The 2-norm over all tensors, sharded or not, float32, the same in all processes."""
    groups: dict[bool, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(in_parts(tensor), []).append(tensor)
    norms = [whole(nn.utils.get_total_norm(group)).float() for group in groups.values()]
    return norms[0] if len(norms) == 1 else nn.utils.get_total_norm(norms)
