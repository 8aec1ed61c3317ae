"""The threads of a run on the CPU: all cores, or one while another program keeps a core busy.

A network is computed in thousands of short parallel regions a step, and each ends when the slowest thread does. If
another program runs on one of the cores, its thread is put aside for milliseconds at a time, and a step takes ten times
as long, or more. One thread loses nothing to a program on another core.
"""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

from sfumato.training.workers import Workers

BUSY = 20.0
"""Times a second at which a thread of ours is put aside for another program: a few on an idle machine."""
WINDOW = 2.0
"""Seconds of steps over which that is counted."""
TRIED = 3
"""Steps that are timed, after one that is not, when the number of threads is changed."""
FASTER = 0.8
"""Of the step time before, what the other number of threads must reach to be kept."""
PATIENCE = 60.0
"""Seconds of steps before another change; doubled by each that did not help."""


def preemptions() -> int:
    """How often threads of this process were put aside for another program so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


@dataclass
class ThreadChoice:
    """Decides after each step whether another number of threads is tried or kept.

    Args:
        threads: the number to use on an idle machine.
        use: sets the number of threads.
        preempted: how often this process was put aside so far.
        start: the number to begin with, all of `threads` or one; others are tried only after a while.
    """

    threads: int
    use: Callable[[int], object] = torch.set_num_threads
    preempted: Callable[[], int] = preemptions
    start: int | None = None
    _now: int = 0
    _before: float | None = None
    """The step time with the other number of threads while this one is tried; None: nothing is tried."""
    _times: list[float] = field(default_factory=list)
    _count: int = 0
    _wait: float = 0.0
    _patience: float = PATIENCE

    def __post_init__(self) -> None:
        self._now, self._count = self.threads, self.preempted()
        if self.start == 1:
            self._now, self._wait = 1, self._patience
            self.use(1)

    def after_step(self, seconds: float) -> str | None:
        """A line for the log where the number of threads changes for good."""
        self._times.append(seconds)
        self._wait -= seconds
        if self._before is not None:
            return self._judge(self._before)
        elapsed = sum(self._times)
        if elapsed < WINDOW:
            return None
        count = self.preempted()
        rate, step = (count - self._count) / elapsed, elapsed / len(self._times)
        self._times, self._count = [], count
        wrong = rate >= BUSY if self._now > 1 else rate < BUSY
        if wrong and self._wait <= 0:
            self._change(step)
        return None

    def _change(self, before: float | None) -> None:
        """Changes the number of threads, on trial if the time of a step `before` is given."""
        self._now = 1 if self._now > 1 else self.threads
        self.use(self._now)
        self._before, self._times, self._count = before, [], self.preempted()

    def _judge(self, before: float) -> str | None:
        """Ends a trial after TRIED steps, or at once where a step takes twice as long."""
        tried = self._times[1:]
        slow = len(self._times) > 1 and self._times[-1] > 2 * before
        if len(tried) < TRIED and not slow:
            return None
        step = sum(tried) / len(tried)
        self._wait = self._patience
        if slow or step > FASTER * before:
            self._patience *= 2
            self._change(None)
            return None
        self._before, self._times, self._count = None, [], self.preempted()
        if self._now == 1:
            return (
                f"another program keeps a core busy: one thread instead of {self.threads}, {before:.2g} -> {step:.2g} "
                "s a step (OMP_NUM_THREADS fixes the number)"
            )
        return f"the cores are free: {self.threads} threads again, {before:.2g} -> {step:.2g} s a step"


_START: ContextVar[int | None] = ContextVar("threads", default=None)


@contextmanager
def starting_with(threads: int) -> Iterator[None]:
    """Within the block runs begin with this many threads, one or all, as measured before."""
    token = _START.set(threads)
    try:
        yield
    finally:
        _START.reset(token)


def thread_choice(workers: Workers) -> ThreadChoice | None:
    """The choice of a run; None where OMP_NUM_THREADS fixes the number, on a GPU, and for several processes."""
    threads = torch.get_num_threads()
    if threads == 1 or workers.world > 1 or workers.device.type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return None
    return ThreadChoice(threads, start=_START.get())
