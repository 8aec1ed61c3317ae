"""The doors of this room: import anything, export to either format, say what is in a file."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from sfumato.errors import UserError
from sfumato.foreign import reading
from sfumato.interop.describe import describe
from sfumato.interop.diffusers_export import export_diffusers
from sfumato.interop.diffusers_import import import_diffusers, is_diffusers_folder
from sfumato.interop.diffusers_single import import_single_autoencoder, is_single_autoencoder
from sfumato.interop.original import Imported, import_original
from sfumato.interop.original_export import export_original
from sfumato.interop.placement import Weights
from sfumato.interop.source import open_checkpoint
from sfumato.locks import exclusive
from sfumato.model import CONFIG_FILE

__all__ = ["Imported", "describe", "export_model", "import_model"]


def import_model(
    source: Path | str,
    out: Path | str,
    config: Path | str | None = None,
    weights: Weights | None = None,
    tokenizer: str | None = None,
    prediction: str | None = None,
) -> Imported:
    """A model folder from an original checkpoint (a file) or a diffusers folder.

    The options are those of `import_original`; a diffusers folder brings its own configuration and takes none.
    Raises UserError for what cannot be read or expressed, naming it.
    """
    source, out = Path(source), Path(out)
    out = out if out.name not in ("", "..") else out.resolve()
    check_target(out)
    with reading(source), _leaving_nothing(out), exclusive(out):
        check_target(out)
        return _import(source, out, config, weights, tokenizer, prediction)


@contextlib.contextmanager
def _leaving_nothing(out: Path) -> Iterator[None]:
    """Folders that were made on the way to `out` are removed again where the import is refused."""
    made = [folder for folder in out.absolute().parents if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _import(
    source: Path,
    out: Path,
    config: Path | str | None,
    weights: Weights | None,
    tokenizer: str | None,
    prediction: str | None,
) -> Imported:
    if not source.is_dir():
        opened = open_checkpoint(source)
        if is_single_autoencoder(opened):
            return import_single_autoencoder(opened, out)
        return import_original(opened, out, config, weights, tokenizer, prediction)
    if (source / "autoencoder.safetensors").exists():
        raise UserError(f"{source} is already a model folder of sfumato; use it as it is")
    if not is_diffusers_folder(source):
        raise UserError(
            f"{source} is no diffusers folder (no model_index.json or config.json); name the checkpoint file"
        )
    options = {"--config": config, "--weights": weights, "--tokenizer": tokenizer, "--prediction": prediction}
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"{given[0]} is for original checkpoints; a diffusers folder brings its own configuration")
    return import_diffusers(source, out)


def check_target(out: Path) -> None:
    """Raises UserError where an import would take the place of anything but a model folder."""
    if out.is_file():
        raise UserError(f"{str(out)!r} is a file; name a folder for the model")
    if os.path.lexists(out) and not out.is_dir():
        raise UserError(f"{str(out)!r} is a link to nothing, or a device; name a folder for the model")
    if out.is_dir() and any(out.iterdir()) and not _is_model(out):
        raise UserError(f"the folder {str(out)!r} holds other things, which the model would replace; name another")


def _is_model(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() and (folder / "autoencoder.safetensors").is_file()


def export_model(model: Path | str, out: Path | str, format: Literal["original", "diffusers"]) -> tuple[str, ...]:
    """Writes a model for the original code or for diffusers; returns lines about what differs or is left out."""
    if format == "original":
        return export_original(model, out).notes
    return export_diffusers(model, out)
