"""`sfumato serve`."""

import os
from dataclasses import dataclass
from pathlib import Path

import typer

from sfumato.cli.flags import command, like
from sfumato.cli.machine import Machine
from sfumato.errors import UserError
from sfumato.service.settings import ServiceSettings

TOKEN = "SFUMATO_TOKEN"


@dataclass(frozen=True, kw_only=True)
class ServeFlags(Machine):
    """The options of `sfumato serve`."""

    models: list[Path] | None = like(
        ServiceSettings, "models", None, metavar="MODEL...", argument=True, type=list[Path], path=True
    )
    host: str = like(ServiceSettings, "host", metavar="ADDRESS")
    port: int = like(ServiceSettings, "port")
    token: str | None = like(ServiceSettings, "token", hint=f"Or in the variable {TOKEN}, which others do not see.")
    allow_host: list[str] | None = like(ServiceSettings, "allow_host", None, type=list[str], metavar="NAME")
    allow_origin: list[str] | None = like(ServiceSettings, "allow_origin", None, type=list[str], metavar="URL")
    folders: list[Path] | None = like(
        ServiceSettings, "folders", None, type=list[Path], names=("--folder",), metavar="FOLDER"
    )
    out: Path = like(ServiceSettings, "out")
    out_size: int = like(ServiceSettings, "out_size")
    batch: int = like(ServiceSettings, "batch")
    lanes: int = like(ServiceSettings, "lanes")
    memory: int = like(ServiceSettings, "memory")
    queue: int = like(ServiceSettings, "queue")
    count: int = like(ServiceSettings, "count")
    pixels: int = like(ServiceSettings, "pixels")
    steps: int = like(ServiceSettings, "steps")
    body: int = like(ServiceSettings, "body")
    seconds: int = like(ServiceSettings, "seconds")


@command(ServeFlags)
def serve(flags: ServeFlags) -> None:
    """Serve models to programs over HTTP.

    Speaks its own protocol (jobs with previews, every task), that of OpenAI's images API and that of AUTOMATIC1111's
    web user interface. MODEL is a model folder, a run, zoo:toy or zoo:emoji; each is loaded when it is first requested.
    Requests with the same settings are computed in one batch. Needs the extra `web`.
    """
    from sfumato.cli.options import chosen_device
    from sfumato.training.workers import use_all_cores

    try:
        from sfumato.service.app import build_app
        from sfumato.service.server import serve as run
        from sfumato.service.service import Service
    except ModuleNotFoundError as error:
        raise UserError(f"`sfumato serve` needs {error.name}: pip install 'sfumato[web]'") from None
    if not flags.models:
        raise UserError("MODEL is missing: give a model folder, the folder of a run, zoo:toy or zoo:emoji, or several")
    settings = settings_of(flags)
    use_all_cores()
    service = Service(settings, chosen_device(flags.device), flags.precision)  # type: ignore[arg-type]  # checked there
    names = ", ".join(one.id for one in service.registry.list())
    run(build_app(service), service, lambda address: typer.echo(f"serving {names} at {address}"))


def settings_of(flags: ServeFlags) -> ServiceSettings:
    """The settings of the flags. Raises UserError."""
    if flags.token is not None and not flags.token.strip():
        raise UserError("--token is empty: give a secret, or leave it out; was a variable of the shell not set?")
    for folder in flags.folders or ():
        if not folder.is_dir():
            raise UserError(f"--folder {str(folder)!r} does not exist, or is not a folder: give one with images")
    given = {name: getattr(flags, name) for name in ServiceSettings.__dataclass_fields__}
    lists = {name: tuple(given[name] or ()) for name in ("models", "folders", "allow_host", "allow_origin")}
    return ServiceSettings(**{**given, **lists, "token": flags.token or os.environ.get(TOKEN) or None})
