"""Rank and world size of launched processes, from the environment, and how the processes end together.

torchrun, accelerate, mpirun and srun name rank and world size differently. Heavy imports happen inside functions: the
command line uses this module when it ends.
"""

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from sfumato.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import Store

WORLDS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Environment variables with the number of processes."""
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Environment variables with the rank of this process."""
TORCHRUN = "python -m torch.distributed.run --standalone --nproc_per_node N -m sfumato …"
REASON = "reason"
"""Key in the store of the sentence that explains why the run ends."""
ANSWER = timedelta(seconds=3)
"""How long a process that ends waits for the store."""


@dataclass(frozen=True)
class Launch:
    """Rank, world size, and the launcher's process number if its end can be detected."""

    rank: int
    world: int
    launcher: int | None
    keeps_store: bool = False
    """Whether the launcher hosts the rendezvous store, so that it outlives a restart of the processes."""


def launched(environment: Mapping[str, str] = os.environ) -> Launch:
    """Read from the environment; a single process if it contains nothing.

    Raises UserError for a value that is not a number, and if a launcher announces several processes without ranks: each
    would train alone, with its share of the batch.
    """
    world = max((_number(environment, name) or 1 for name in WORLDS), default=1)
    if world == 1:
        _check_promises(environment)
        return Launch(0, 1, None)
    rank = next((number for name in RANKS if (number := _number(environment, name)) is not None), None)
    if rank is None:
        variable = next(name for name in WORLDS if _number(environment, name) == world)
        raise UserError(f"{variable} is {world}, but no rank is set: start the processes with {TORCHRUN}")
    launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in environment else None
    return Launch(rank, world, launcher, environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True")


def _check_promises(environment: Mapping[str, str]) -> None:
    """Raises UserError if several processes were started, or should have been, that are not connected."""
    started = _number(environment, "SLURM_STEP_NUM_TASKS")
    if started is not None and started > 1:
        raise UserError(
            f"srun started {started} processes (SLURM_STEP_NUM_TASKS) that are not connected: start one a "
            "node, and in it python -m torch.distributed.run --nnodes NODES --nproc_per_node N -m sfumato …; where "
            "this is the only one, unset SLURM_STEP_NUM_TASKS"
        )
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment
    if by_accelerate and "MASTER_PORT" in environment and not any(name in environment for name in WORLDS):
        raise UserError(
            "accelerate launch should start several processes but started one, as it does without a GPU: start them "
            f"with {TORCHRUN}, or one with --num_processes 1 and without MASTER_PORT"
        )


def _number(environment: Mapping[str, str], name: str) -> int | None:
    """A variable as a number; None if it is not set. Raises UserError for anything else."""
    text = environment.get(name, "")
    if not text.strip():
        return None
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"the environment's {name} is {text!r}, which is not a number: unset it, or start with {TORCHRUN}"
        ) from None


def check_world(launch: Launch, world: int) -> None:
    """Raises UserError if the number of connected processes is not the one the launcher announced."""
    if world != launch.world:
        raise UserError(
            f"the launcher announced {launch.world} processes, but this one is in a world of {world}: start them with "
            f"{TORCHRUN}"
        )


def open_store(timeout: timedelta) -> "Store | None":
    """A separate connection to the rendezvous store; None if there is none."""
    from torch.distributed import PrefixStore, TCPStore

    place, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not place or not port or not port.isdigit():
        return None
    try:
        store = TCPStore(place, int(port), is_master=False, timeout=timeout, wait_for_workers=False)
    except (RuntimeError, ValueError):
        return None
    run, restart = (os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT"))
    return PrefixStore(f"sfumato/{run}/{restart}", store)


def lost_a_process(error: BaseException) -> bool:
    """Whether an error only shows that another process of the run has gone."""
    from torch.distributed import DistError

    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
    return isinstance(error, DistError) or ("gloo" in str(error).lower() and any(part in str(error) for part in signs))


def end_together(launch: Launch, sentence: str, code: int, symptom: bool = False) -> NoReturn:
    """Ends one of several processes at once. An error that all processes have is printed by rank 0 alone.

    Another rank prints its own sentence if rank 0 gives no reason, or a different one. A `symptom`, which follows from
    the end of another process, is printed once, and only if no process gave a reason.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    store = open_store(ANSWER)
    if store is None or _prints(launch, store, sentence, symptom):
        which = "" if launch.rank == 0 else f" (process {launch.rank} of {launch.world})"
        print(f"sfumato{which}: {sentence}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)  # without waiting, at the interpreter's end, for processes that wait for this one


def _prints(launch: Launch, store: "Store", sentence: str, symptom: bool) -> bool:
    """Whether this process should print its sentence; a reason is also put into the store for the others."""
    try:
        if launch.rank == 0 and not symptom:
            store.set(REASON, sentence)
            return True
        if _has_reason(store):
            return not symptom and store.get(REASON).decode() != sentence
        if symptom:
            return store.add("symptoms", 1) == 1
        store.set(REASON, sentence)
    except RuntimeError:  # the store has gone
        return True
    return True


def _has_reason(store: "Store") -> bool:
    """Whether another process puts a reason into the store within ANSWER."""
    try:
        store.wait([REASON], ANSWER)
    except RuntimeError:
        return False
    return True
