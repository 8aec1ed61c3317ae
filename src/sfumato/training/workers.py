"""The processes of a run and their devices: a thin wrapper around accelerate if there are several."""

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, parse_flag_from_env
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sfumato.training.heartbeat import MEETING, SILENCE, Heartbeat
from sfumato.training.launch import Launch, check_world, launched, open_store
from sfumato.training.shares import Sharing

M = TypeVar("M", bound=nn.Module)
PATIENCE = timedelta(hours=2)
"""How long a process waits for another: the leader opens data, previews and saves while the others wait."""


class Workers:
    """Rank, world size and device; how modules are wrapped and tensors averaged.

    Raises UserError if the number of processes is not the one the launcher announced.

    Several processes are set up by accelerate. It fixes the device of the first call for the whole process, so a single
    process does not use it: that may work on the CPU first and train on the GPU afterwards.
    """

    def __init__(self, device: str | None = None) -> None:
        on_cpu = device == "cpu" or not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
        self.device = torch.device("cpu" if on_cpu else "cuda")
        self.rank, self.world = 0, 1
        self._accelerator: Accelerator | None = None
        self._heartbeat: Heartbeat | None = None
        launch = launched()
        if launch.world > 1:
            self._heartbeat = Heartbeat(launch.rank, launch.world, launch.launcher)
            self._heartbeat.start(lambda: open_store(timedelta(seconds=MEETING)))
            if launch.keeps_store and not dist.is_initialized():
                _connect(launch, on_cpu)
            self._accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
            self.device, self.rank = self._accelerator.device, self._accelerator.process_index
            self.world = self._accelerator.num_processes
            check_world(launch, self.world)
            self._heartbeat.meet(open_store(timedelta(seconds=2 * SILENCE)), self.barrier)

    @property
    def leads(self) -> bool:
        """True in the one process that writes files and messages."""
        return self.rank == 0

    @property
    def sharing(self) -> Sharing | None:
        """How the processes share out work that each would repeat; None for one process, and on GPUs."""
        if self.world == 1 or self.device.type != "cpu":
            return None
        return Sharing(self.rank, self.world, self._gathered)

    def splits(self, shard: str) -> bool:
        """Whether networks are in parts with `train.shard` set to this."""
        return shard == "full" and self.world > 1

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

    def accumulating(self, last: bool, *wrapped: nn.Module | None) -> AbstractContextManager[object]:
        """For forward and backward pass of a micro-batch: gradients are averaged over the processes after the last."""
        stack = ExitStack()
        if not last:
            for module in wrapped:
                if isinstance(module, DistributedDataParallel):
                    stack.enter_context(module.no_sync())
        return stack

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its mean over the processes, in place; one exchange for all of them."""
        tensors = list(tensors)
        if self.world == 1 or not tensors:
            return
        whole = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
        dist.all_reduce(whole)
        whole.div_(self.world)
        for tensor, part in zip(tensors, whole.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.detach().copy_(part.view(tensor.shape))

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
        return tensor if self.world == 1 else torch.cat(self._gathered(tensor))

    def _gathered(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.world)]
        dist.all_gather(parts, tensor.contiguous())
        return parts

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process; all get the same answer."""
        return bool(self.greatest(int(flag)))

    def greatest(self, number: int) -> int:
        """The greatest of the processes' numbers, the same in all."""
        if self.world == 1:
            return number
        tensor = torch.tensor(number, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def barrier(self) -> None:
        """Waits for every process."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The leading process runs the block first, the others after it, so that they find its files."""
        if self._accelerator is None:
            yield
            return
        with self._accelerator.main_process_first():
            yield

    def explain_end(self) -> None:
        """Prints why the run ends early, if it is the launcher's end and not a user's signal."""
        if self._heartbeat is not None:
            self._heartbeat.explain()

    def close(self) -> None:
        """Ends the process group."""
        if self._accelerator is None:
            return
        self._accelerator.wait_for_everyone()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        self._accelerator.end_training()
        if dist.is_initialized():
            dist.destroy_process_group()


def _connect(launch: Launch, on_cpu: bool) -> None:
    """Sets up the process group through a store of this start of the processes alone; accelerate then takes it over.

    torchrun keeps one store over all its restarts, and torch reads and writes there without a prefix. A process would
    find the address of one that has ended, and wait for it.
    """
    store = open_store(PATIENCE)
    if store is None:
        return  # accelerate's own attempt gives the reason
    dist.init_process_group(
        "gloo" if on_cpu else "nccl",
        store=dist.PrefixStore("group", store),
        rank=launch.rank,
        world_size=launch.world,
        timeout=PATIENCE,
    )


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_all_cores() -> None:
    """Lets torch use all cores available to this process, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cores())
