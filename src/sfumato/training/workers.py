"""The processes of a run and where they compute: a thin face on accelerate where there are several."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, get_int_from_env, parse_flag_from_env
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
PATIENCE = timedelta(hours=2)
"""How long a process waits for another: the leader opens data, previews and saves while the others stand by."""


WORLD = ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]
"""Where launchers leave the number of processes."""


class Workers:
    """Rank, world size and device; how modules are wrapped and tensors averaged.

    Several processes are as accelerate found them. It keeps the device that it was first asked for, to the process's
    end, so a process that is alone does without: it may look at the CPU first and train on the GPU afterwards.
    """

    def __init__(self, device: str | None = None) -> None:
        on_cpu = device == "cpu" or not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
        self.device = torch.device("cpu" if on_cpu else "cuda")
        self.rank, self.world = 0, 1
        self._accelerator: Accelerator | None = None
        if get_int_from_env(WORLD, 1) > 1:
            self._accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
            self.device, self.rank = self._accelerator.device, self._accelerator.process_index
            self.world = self._accelerator.num_processes

    @property
    def leads(self) -> bool:
        """True in the one process that writes files and talks."""
        return self.rank == 0

    def place(self, module: M) -> M:
        """Moves a module to the device, its kernels to channels-last order."""
        module.to(self.device)
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks the keyword
        return module

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module as training calls it: under DistributedDataParallel where there are several processes."""
        if self._accelerator is None:
            return module
        wrapped: nn.Module = self._accelerator.prepare_model(module)
        return wrapped

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its mean over the processes, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor.div_(self.world)

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        if self.world > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def mean(self, number: float) -> float:
        """The mean of a number over the processes, the same in all."""
        if self.world == 1:
            return number
        return self.total(torch.tensor(number, device=self.device)).item() / self.world

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors (B, ...) of all processes, of one shape, joined along B in the order of the ranks."""
        if self.world == 1:
            return tensor
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.world)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process; all get the same answer."""
        return bool(self.total(torch.tensor(int(flag), device=self.device))) if self.world > 1 else flag

    def barrier(self) -> None:
        """Waits for every process."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The leading process runs the block alone, the others after it: they find its files."""
        if self._accelerator is None:
            yield
            return
        with self._accelerator.main_process_first():
            yield

    def close(self) -> None:
        """Ends the process group."""
        if self._accelerator is None:
            return
        self._accelerator.end_training()
        if dist.is_initialized():
            dist.destroy_process_group()


def use_all_cores() -> None:
    """Lets torch use the cores this process may run on, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
