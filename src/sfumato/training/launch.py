"""What a launcher of several processes promised, as it left it in the environment, and how they end together.

torchrun, accelerate, mpirun and srun name rank and world differently. Nothing heavy is imported before it is needed:
the command line looks here when it ends.
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
"""Where launchers leave the number of processes."""
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Where they leave the number of this one."""
TORCHRUN = "python -m torch.distributed.run --standalone --nproc_per_node N -m sfumato …"
ANSWER = timedelta(seconds=5)
"""How long a process that ends waits for the others' store."""


@dataclass(frozen=True)
class Launch:
    """This process's number, how many there are, and the launcher's own process where its death can be noticed."""

    rank: int
    world: int
    launcher: int | None


def launched(environment: Mapping[str, str] = os.environ) -> Launch:
    """As the environment says; one process where it says nothing.

    Raises UserError for a number that is none, and where a launcher promised several processes but does not tell them
    apart: each would train by itself, with its share of the batch.
    """
    world = max((_number(environment, name) or 1 for name in WORLDS), default=1)
    if world == 1:
        _check_promises(environment)
        return Launch(0, 1, None)
    rank = next((number for name in RANKS if (number := _number(environment, name)) is not None), None)
    if rank is None:
        given = next(name for name in WORLDS if _number(environment, name) == world)
        raise UserError(f"{given} is {world}, but no rank is set: start the processes with {TORCHRUN}")
    return Launch(rank, world, os.getppid() if "TORCHELASTIC_RUN_ID" in environment else None)


def _check_promises(environment: Mapping[str, str]) -> None:
    """Raises UserError where something started, or was to start, several processes that know nothing of each other."""
    started = _number(environment, "SLURM_STEP_NUM_TASKS")
    if started is not None and started > 1:
        raise UserError(
            f"srun started {started} processes (SLURM_STEP_NUM_TASKS) that know nothing of each other: start one a "
            "node, and in it python -m torch.distributed.run --nnodes NODES --nproc_per_node N -m sfumato …"
        )
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment
    if by_accelerate and "MASTER_PORT" in environment and not any(name in environment for name in WORLDS):
        raise UserError(
            "accelerate launch was asked for several processes and started one, as it does without a GPU: start them "
            f"with {TORCHRUN}"
        )


def _number(environment: Mapping[str, str], name: str) -> int | None:
    """The number that a variable holds; None where it is not set. Raises UserError for anything else."""
    text = environment.get(name, "")
    if not text.strip():
        return None
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"the environment's {name} is {text!r}, no number: unset it, or start with {TORCHRUN}"
        ) from None


def check_world(launch: Launch, world: int) -> None:
    """Raises UserError where the processes found each other in another number than the launcher promised."""
    if world != launch.world:
        raise UserError(
            f"the launcher promised {launch.world} processes, but this one is in a world of {world}: start them with "
            f"{TORCHRUN}"
        )


def open_store(timeout: timedelta) -> "Store | None":
    """A connection of its own to the store that the processes met at; None where there is none."""
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
    """Whether an error says that another process of the run has gone, rather than what went wrong."""
    from torch.distributed import DistError

    told = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
    return isinstance(error, DistError) or ("gloo" in str(error).lower() and any(part in str(error) for part in told))


def end_together(launch: Launch, sentence: str, code: int, symptom: bool = False) -> NoReturn:
    """Ends one of several processes at once. A mistake that all make is printed by the leading one alone.

    Another prints its own sentence where the leading one has nothing, or something else, to say; a `symptom`, which
    follows from another's end, is printed where nobody has said why.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    said = _said(launch, sentence, symptom)
    if said is None or (said != sentence and not symptom):
        which = "" if launch.rank == 0 else f" (process {launch.rank} of {launch.world})"
        print(f"sfumato{which}: {sentence}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)  # without waiting, at the interpreter's end, for processes that wait for this one


def _said(launch: Launch, sentence: str, symptom: bool) -> str | None:
    """What another process has printed as the reason; None where this one is to print."""
    store = open_store(ANSWER)
    if store is None:
        return None
    try:
        if launch.rank == 0 and not symptom:
            store.set("reason", sentence)
            return None
        store.wait(["reason"], ANSWER)
        return store.get("reason").decode()
    except RuntimeError:
        return None
