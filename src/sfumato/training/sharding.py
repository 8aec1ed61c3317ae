"""Weights, gradients, moments and averages in parts, one a process (FSDP2), and whole again where that is needed.

torch's `fully_shard` gathers the weights of a block before its forward and backward pass, frees them afterwards, and
leaves each process the mean of its part of the gradients (Rajbhandari et al. 2020, ZeRO stage 3).
"""

import copy
import warnings
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sfumato.conditioning.encoder import FeedForward, SelfAttention
from sfumato.denoiser.blocks import Block
from sfumato.training.parts import whole

M = TypeVar("M", bound=nn.Module)
UNITS = (Block, SelfAttention, FeedForward)
"""Modules whose weights are gathered together: blocks of the U-Net, layers of the text transformer."""


def shard(root: nn.Module, device: torch.device, world: int) -> None:
    """Replaces each parameter by this process's part, in place. `root` is the module that is called in a step."""
    # torch warns of operations in place on what a unit returns; the networks have none
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (world,))
    for parameter in root.parameters():  # FSDP2 needs memory in the order of the axes, not channels last
        parameter.data = parameter.data.contiguous()
    for unit in units(root):
        fully_shard(unit, mesh=mesh)
    fully_shard(root, mesh=mesh)


def shard_with_average(trained: nn.Module, averaged: M, device: torch.device, rank: int, world: int) -> "WholeCopy[M]":
    """Shards networks and their average; returns the whole copy of the average for the process of rank 0."""
    copied = WholeCopy(averaged, device, rank == 0)
    for module in (trained, averaged):
        shard(module, device, world)
    return copied


def units(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost units below a module."""
    for child in module.children():
        if isinstance(child, UNITS):
            yield child
        else:
            yield from units(child)


def parted(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same in all processes, in parts as `like` is."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


class WholeCopy(Generic[M]):
    """A module that is about to be sharded, without parts: for previews and export in the process that leads.

    `module` has memory only between `gather` and `release`, and only there.
    """

    def __init__(self, module: M, device: torch.device, leads: bool) -> None:
        blank: dict[int, object] = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), False) for p in module.parameters()
        }
        self.module: M = copy.deepcopy(module, blank)
        self.release()
        self._sharded, self._device, self._leads = module, device, leads

    @torch.no_grad()
    def gather(self) -> None:
        """Copies parameters and buffers from the sharded module; every process has to call it."""
        own: dict[str, Tensor] = {}
        if self._leads:
            self.module.to_empty(device=self._device)
            own = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        for name, tensor in (*self._sharded.named_parameters(), *self._sharded.named_buffers()):
            complete = whole(tensor)
            if name in own:
                own[name].copy_(complete)

    def release(self) -> None:
        """Frees the copy's memory."""
        self.module.to_empty(device="meta")
