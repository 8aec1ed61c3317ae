"""`sfumato doctor`."""

from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from sfumato.cli.flags import command, flag


@dataclass(frozen=True, kw_only=True)
class DoctorFlags:
    """The options of `sfumato doctor`."""

    folder: Path = flag(
        Path("."),
        "output",
        "The folder for runs, whose disk is checked.",
        metavar="[FOLDER]",
        argument=True,
        path=True,
    )
    as_json: bool = flag(False, "output", "The same as one JSON object.", names=("--json",))


@command(DoctorFlags)
def doctor(flags: DoctorFlags) -> None:
    """Check this machine and this installation.

    Prints one line each for Python, torch, processor, memory, GPU, kernels, disk and optional packages, and how to get
    what is missing. The exit code is 1 if something will fail, else 0.
    """
    from sfumato.estimate.doctor import examine
    from sfumato.plain_json import to_json

    findings = examine(flags.folder)
    if flags.as_json:
        typer.echo(to_json({each.name: asdict(each) for each in findings}, indent=2))
    else:
        from sfumato.cli.tables import show

        marks = {"ok": "ok", "missing": "-", "problem": "PROBLEM"}
        rows = [
            [each.name, marks[each.state], "; ".join(filter(None, (each.found, each.way_out)))] for each in findings
        ]
        show(None, rows)
    if any(each.state == "problem" for each in findings):
        raise typer.Exit(1)
