"""Weights, gradients, moments and averages in parts, one a process (FSDP2), and whole again where that is needed.

torch's `fully_shard` gathers the weights of a block before its forward and backward pass, frees them afterwards, and
leaves each process the mean of its part of the gradients (Rajbhandari et al. 2020, ZeRO stage 3).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sfumato.conditioning.encoder import FeedForward, SelfAttention
from sfumato.denoiser.blocks import Block
from sfumato.denoiser.convnext import ConvNeXtBlock
from sfumato.denoiser.dit import DiTBlock
from sfumato.training.parts import local, texts_of, whole, without_memory
from sfumato.training.workers import Workers

M = TypeVar("M", bound=nn.Module)
UNITS = (Block, ConvNeXtBlock, DiTBlock, SelfAttention, FeedForward)
"""Modules whose weights are gathered together: blocks of the denoisers, layers of the text transformer."""


def shard_with_average(trained: nn.Module, networks: nn.Module, averaged: M, workers: Workers) -> "WholeCopy[M]":
    """Leaves each process a part of the networks and of their average, in place; returns the whole copy of the average
    for the process of rank 0.

    No device ever holds a whole network: the parameters go from rank 0 to the parts one by one.

    Args:
        trained: the module that a step calls. Rank 0 has its weights, on the CPU or the device; those of the others are
            not read and may be on the meta device.
        networks: the part of it that is averaged.
        averaged: a copy of `networks` without memory; its average begins with their weights.
        workers: the processes.
    """
    copied = WholeCopy(averaged, workers.device, workers.leads)
    given = {name: tensor.detach() for name, tensor in _named_tensors(trained)} if workers.leads else {}
    with _encoders_kept(trained):
        trained.to("meta")
    for module in (trained, averaged):
        shard(module, workers)
        empty(module, workers.device)
    _fill(trained, given, workers)
    theirs = dict(_named_tensors(networks))
    with torch.no_grad():
        for name, tensor in _named_tensors(averaged):
            local(tensor).copy_(local(theirs[name]))
    for part in texts_of(trained):
        part.encoder.to(workers.device)
    return copied


def shard(root: nn.Module, workers: Workers) -> None:
    """Splits each parameter, in place. `root` is the module that is called in a step."""
    # torch warns of operations in place on what a unit returns; the networks have none
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(workers.device.type, (workers.world,))
    for unit in units(root):
        fully_shard(unit, mesh=mesh)
    fully_shard(root, mesh=mesh)


def empty(module: nn.Module, device: torch.device | str) -> None:
    """Gives parameters and buffers new memory on a device, or none on the meta device."""
    with _encoders_kept(module):
        module.to_empty(device=device)


@torch.no_grad()
def _fill(module: nn.Module, given: dict[str, Tensor], workers: Workers) -> None:
    """Copies the tensors that rank 0 has, and removes there, to the parts in all processes."""
    for name, tensor in _named_tensors(module):
        if workers.leads:
            complete = given.pop(name).to(workers.device).contiguous()
        else:
            complete = torch.empty(tensor.shape, dtype=tensor.dtype, device=workers.device)
        if isinstance(tensor, DTensor):
            part = distribute_tensor(complete, tensor.device_mesh, tensor.placements, src_data_rank=0)
            local(tensor).copy_(local(part))
        else:
            dist.broadcast(complete, 0)
            tensor.copy_(complete)


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


@contextmanager
def _encoders_kept(module: nn.Module) -> Iterator[None]:
    """Within the block frozen text encoders, which follow the module, stay where they are."""
    texts = texts_of(module)
    encoders = [part.encoder for part in texts]
    for part in texts:
        part.__dict__["encoder"] = nn.Identity()
    yield
    for part, encoder in zip(texts, encoders, strict=True):
        part.__dict__["encoder"] = encoder


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
        self.module: M = without_memory(module)
        self._sharded, self._device, self._leads = module, device, leads

    @torch.no_grad()
    def gather(self) -> None:
        """Copies parameters and buffers from the sharded module; every process has to call it."""
        own: dict[str, Tensor] = {}
        if self._leads:
            empty(self.module, self._device)
            own = dict(_named_tensors(self.module))
        for name, tensor in _named_tensors(self._sharded):
            complete = whole(tensor)
            if name in own:
                own[name].copy_(complete)

    def release(self) -> None:
        """Frees the copy's memory."""
        empty(self.module, "meta")
