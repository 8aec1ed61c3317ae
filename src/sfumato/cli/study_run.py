"""Around the trainings of every `sfumato study`: folder, device, progress, and the page at the end."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer

from sfumato.cli.flags import REQUIRED, flag
from sfumato.cli.machine import Machine

if TYPE_CHECKING:
    import torch

    from sfumato.data.dataset import Progress
    from sfumato.training.workers import Workers


@dataclass(frozen=True, kw_only=True)
class StudyFolder(Machine):
    """Where a study is written, and where it computes."""

    out: Path = flag(REQUIRED, "output", "The study's folder; an interrupted study there is resumed.")

    def checked_device(self) -> "torch.device":
        """Where the networks compute. Raises UserError, also for a precision that the device does not have."""
        from sfumato.cli.options import chosen_autocast, chosen_device

        device = chosen_device(self.device)
        chosen_autocast(device, self.precision)
        return device


class Study(Protocol):
    """Runs what is left of a study, and writes its page after each training; `command` repeats the study."""

    def __call__(
        self,
        workers: "Workers",
        command: str,
        say: Callable[[str], None],
        progress: "Callable[[str], Progress]",
    ) -> object: ...


def run_to_page(out: Path, device: "torch.device", study: Study) -> None:
    """Runs a study in the folder `out`, and prints where its page is.

    Raises UserError, and typer.Exit after a signal, with the state saved.
    """
    from sfumato.cli.progress import bars
    from sfumato.outputs import written
    from sfumato.studies.context import Stopped
    from sfumato.studies.folder import PAGE_FILE
    from sfumato.training.workers import Workers, use_all_cores

    use_all_cores()
    workers = Workers("cpu" if device.type == "cpu" else None)
    typed = shlex.join(["sfumato", *sys.argv[1:]])
    try:
        with bars() as (say, progress), written(out, begun=lambda: any(out.rglob("log.jsonl"))):
            study(workers, typed, say, progress)
    except Stopped as stopped:  # the training has printed how to continue
        raise typer.Exit(128 + stopped.number) from None
    typer.echo(f"page: {out / PAGE_FILE}")
