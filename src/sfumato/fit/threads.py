"""How many threads a fit computes with: one for each core, or one alone where that is faster."""

import os
from collections.abc import Callable
from dataclasses import replace

import torch

from sfumato.errors import UserError
from sfumato.fit.facts import MachineFacts
from sfumato.fit.measure import Timer
from sfumato.fit.plan import FitPlan

FASTER = 0.9
"""Of the time of all threads, what one must take to be chosen."""
VARIABLE = "OMP_NUM_THREADS"


def fix_threads(threads: int | None, cores: int) -> None:
    """Computes with this many threads until the end, whatever else the machine does; None changes nothing.

    Raises UserError for more threads than cores.
    """
    if threads is None:
        return
    if threads > cores:
        raise UserError(f"--threads is {threads}, but this process may use {cores} cores: give {cores} or fewer")
    os.environ[VARIABLE] = str(threads)  # the trainings read this, and leave the number alone
    torch.set_num_threads(threads)


def with_threads(machine: MachineFacts) -> MachineFacts:
    """The machine with the number of threads that torch uses now, and whether it is fixed."""
    fixed = VARIABLE in os.environ or machine.device != "cpu"
    return replace(machine, threads=torch.get_num_threads(), threads_fixed=fixed)


def one_is_faster(plan: FitPlan, timer: Timer, use: Callable[[int], object] = torch.set_num_threads) -> bool:
    """Whether one thread trains the plan's denoiser faster than all that its machine has; the faster number is in use
    afterwards.

    It is where another program keeps a core busy, since each of a step's thousand parallel regions then waits for the
    thread that was put aside, and for networks so small that sharing them out takes longer than computing them.
    """
    threads = plan.machine.threads
    if plan.machine.threads_fixed or threads <= 1:
        return False
    every = plan.machine.second[plan.second.key].seconds
    use(1)
    if timer.second(plan).seconds < FASTER * every:
        return True
    use(threads)
    return False
