"""`sfumato studio`."""

import webbrowser
from dataclasses import dataclass
from pathlib import Path

import typer

from sfumato.cli.flags import command, flag
from sfumato.cli.machine import Machine
from sfumato.pipeline.options import Range

PORT = 8189


@dataclass(frozen=True, kw_only=True)
class StudioFlags(Machine):
    """The options of `sfumato studio`."""

    folders: list[Path] | None = flag(
        None,
        "what to sample",
        "Folders with runs, models, images and cards; nothing outside them is read [default: the current folder].",
        metavar="[FOLDER]...",
        argument=True,
        type=list[Path],
        path=True,
    )
    out: Path | None = flag(
        None, "output", "The folder for images, uploads and outputs of trainings [default: studio in the first FOLDER]."
    )
    port: int = flag(PORT, "machine", "The port to listen on; 0 takes a free one.", Range(0, 65535, whole=True))
    browser: bool = flag(True, "output", "Open the page in the browser.", names=("--browser/--no-browser",))


@command(StudioFlags)
def studio(flags: StudioFlags) -> None:
    """Open the studio, a page in the browser.

    To make images, draw masks, maps and boxes, train, and compare.

    The page is served on 127.0.0.1 to the browser that opens the printed address. Needs the extra `web`.
    """
    from sfumato.cli.options import chosen_device
    from sfumato.errors import UserError
    from sfumato.training.workers import use_all_cores

    try:
        from sfumato.service.server import serve
        from sfumato.studio.studio import Studio, StudioSettings
    except ModuleNotFoundError as error:
        raise UserError(f"`sfumato studio` needs {error.name}: pip install 'sfumato[web]'") from None
    folders = tuple(flags.folders or ()) or (Path(),)
    device = chosen_device(flags.device)
    use_all_cores()
    settings = StudioSettings(folders, flags.out or folders[0] / "studio", flags.port, device, flags.precision)  # type: ignore[arg-type]  # checked there
    made = Studio(settings)

    def ready(address: str) -> None:
        page = f"{address}/?token={made.token}"
        typer.echo(f"the studio is open at {page}")
        if flags.browser:
            webbrowser.open(page)

    serve(made.app, made.service, ready)
