"""Work on independent tensors, shared out among the processes of a run: each computes some, all get all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Gather = Callable[[Tensor], Sequence[Tensor]]
"""A tensor of one shape in all processes -> those of all, in the order of the ranks."""


@dataclass(frozen=True)
class Sharing:
    """This process among `world`, and how they exchange tensors."""

    rank: int
    world: int
    gather: Gather


def owners(costs: Sequence[float], world: int) -> list[int]:
    """The rank that computes each of several pieces of work: the costliest first, to whom has least to do so far."""
    loads = [0.0] * world
    chosen = [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda each: (-costs[each], each)):
        rank = min(range(world), key=lambda each: (loads[each], each))
        chosen[piece] = rank
        loads[rank] += costs[piece]
    return chosen


def exchanged(
    sharing: Sharing, owner: Sequence[int], shapes: Sequence[torch.Size], own: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """All tensors in order, each as the rank that owns it has computed it; one exchange for all.

    Args:
        sharing: the processes.
        owner: the rank of each tensor.
        shapes: the shape of each tensor.
        own: those that this process computed, in order.
        dtype: the type in which they are sent and returned, the same in all processes.
    """
    sizes = [shape.numel() for shape in shapes]
    loads = [sum(size for size, of in zip(sizes, owner, strict=True) if of == rank) for rank in range(sharing.world)]
    sent = torch.zeros(max(loads), dtype=dtype, device=own[0].device if own else None)
    if own:
        torch.cat([tensor.reshape(-1).to(dtype) for tensor in own], out=sent[: loads[sharing.rank]])
    gathered = [part.view(dtype) for part in sharing.gather(sent.view(torch.uint8))]  # bytes: any type can be sent
    parts = [
        iter(part[:load].split([size for size, of in zip(sizes, owner, strict=True) if of == rank]))
        for rank, (part, load) in enumerate(zip(gathered, loads, strict=True))
    ]
    return [next(parts[rank]).view(shape) for rank, shape in zip(owner, shapes, strict=True)]
