"""Curves and previews of a run in other programs, through their own libraries: TensorBoard, Weights & Biases, trackio.

`log.jsonl` and `previews/` are written in any case.
"""

import json
import secrets
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from sfumato.checkpoint import write_text
from sfumato.documents import parse_yaml, read_text
from sfumato.errors import UserError
from sfumato.plain_json import to_json

Tracking = Literal["auto", "none", "tensorboard", "wandb", "trackio"]
PROJECT = "sfumato"
NAMES = "track.json"
"""The name of the run at each tracker, under which its next session continues."""


class Tracker(Protocol):
    """A program that shows runs."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Shows numbers of a step."""

    def image(self, step: int, name: str, path: Path) -> None:
        """Shows an image of a step."""

    def close(self) -> None:
        """Writes what is left."""


def check_tracker(kind: Tracking) -> None:
    """Raises UserError for a tracker whose library is not installed."""
    if kind not in ("auto", "none") and find_spec(kind) is None:
        raise UserError(
            f"train.track={kind} needs its library: pip install {kind}, or leave train.track out; log.jsonl has the "
            "same numbers"
        )


def open_tracker(kind: Tracking, folder: Path, step: int) -> Tracker | None:
    """The tracker of a run that continues at a step; None for none, and for auto where TensorBoard is not installed.

    Raises UserError if its library is not installed or cannot begin.
    """
    check_tracker(kind)
    match kind:
        case "none":
            return None
        case "wandb":
            return Run("wandb", folder)
        case "trackio":
            return Run("trackio", folder)
    try:
        return Board(folder, step)
    except ImportError:
        return None


class Board:
    """TensorBoard: event files in `tensorboard/` of the run; those after `step` belong to lost work and are hidden."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, path: Path) -> None:
        """See Tracker."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """See Tracker."""
        self._writer.close()


class Run:
    """A run of Weights & Biases or trackio, which share an interface: `init`, `log` with a step, `Image`, `finish`.

    Their own variables hold, such as WANDB_MODE=offline and WANDB_PROJECT.
    """

    def __init__(self, library: Literal["wandb", "trackio"], folder: Path) -> None:
        import importlib

        self._library: Any = importlib.import_module(library)
        named = _named(folder, library)
        options: dict[str, Any] = {"id": named, "dir": str(folder)} if library == "wandb" else {"name": named}
        if library == "wandb":
            options["name"] = "/".join(folder.resolve().parts[-2:])
        self._run: Any = _begun(
            library, lambda: self._library.init(project=PROJECT, config=_config(folder), resume="allow", **options)
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        self._library.log(dict(values), step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        """See Tracker."""
        self._library.log({name: self._library.Image(str(path))}, step=step)

    def close(self) -> None:
        """See Tracker."""
        self._library.finish()


def _begun(library: str, begin: Callable[[], Any]) -> Any:
    try:
        return begin()
    except Exception as error:  # a library's own errors share no base
        lines = str(error).strip().splitlines() or [type(error).__name__]
        offline = "; WANDB_MODE=offline needs no account" if library == "wandb" else ""
        raise UserError(f"train.track={library} cannot begin ({lines[-1][:200]}): log in there{offline}") from None


def _named(folder: Path, library: str) -> str:
    """The run's name at a tracker, made once and kept in its folder."""
    file = folder / NAMES
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict):
        known = {}
    if not isinstance(known.get(library), str):
        known[library] = f"{folder.name}-{secrets.token_hex(4)}"
        write_text(file, to_json(known, indent=1) + "\n")
    return str(known[library])


def _config(folder: Path) -> dict[str, Any]:
    """The run's configuration, as its folder has it."""
    file = folder / "config.yaml"
    try:
        found = parse_yaml(read_text(file), str(file))
    except (UserError, OSError):
        return {}
    return found if isinstance(found, dict) else {}
