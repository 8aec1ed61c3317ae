"""The entry points of this package: import any supported format, export to one of them or to ONNX."""

import shutil
from pathlib import Path
from typing import Literal

from sfumato.errors import UserError
from sfumato.foreign import reading
from sfumato.interop.describe import describe
from sfumato.interop.diffusers_export import export_diffusers
from sfumato.interop.diffusers_import import import_diffusers, is_diffusers_folder
from sfumato.interop.diffusers_single import import_single_autoencoder, is_single_autoencoder
from sfumato.interop.onnx.export import export_onnx
from sfumato.interop.original import Imported, import_original
from sfumato.interop.original_export import export_original
from sfumato.interop.placement import Weights
from sfumato.interop.read_back import Networks, check_export, open_networks
from sfumato.interop.source import open_checkpoint
from sfumato.locks import exclusive
from sfumato.model_folder import find_folder
from sfumato.outputs import no_new_parents_on_error, out_is_free
from sfumato.versions import swap_folder

SINGLE_FILES = (".ckpt", ".pt", ".safetensors")
Format = Literal["original", "diffusers", "onnx"]

__all__ = ["Format", "Imported", "describe", "export_model", "import_model"]


def import_model(
    source: Path | str,
    out: Path | str,
    config: Path | str | None = None,
    weights: Weights | None = None,
    tokenizer: str | None = None,
    prediction: str | None = None,
    overwrite: bool = False,
) -> Imported:
    """A model folder from an original checkpoint (a file) or a diffusers folder.

    The options are those of `import_original`; a diffusers folder has its own configuration and accepts none.
    `overwrite` replaces an existing `out`. Raises UserError naming anything that cannot be read or expressed, and for
    an output that is in use.

    Example:
        >>> notes = sfumato.export_model("runs/images", "for-others", "diffusers")
        >>> imported = sfumato.import_model("for-others", "back-again")
        >>> sfumato.load(imported.folder).config.image_size
        (16, 24)
    """
    source, out = Path(source), Path(out)
    out = out_is_free(out, (source,), overwrite)
    with reading(source), no_new_parents_on_error(out), exclusive(out):
        out_is_free(out, (source,), overwrite)
        return _import(source, out, config, weights, tokenizer, prediction)


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
            f"{source} is not a diffusers folder (no model_index.json or config.json); name the checkpoint file"
        )
    options = {"--config": config, "--weights": weights, "--tokenizer": tokenizer, "--prediction": prediction}
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"{given[0]} is for original checkpoints; a diffusers folder has its own configuration")
    return import_diffusers(source, out)


def export_model(model: Path | str, out: Path | str, format: Format, overwrite: bool = False) -> tuple[str, ...]:
    """Writes a model for the original code, diffusers or ONNX; returns notes on what differs or is left out.

    It is written to a temporary name, read back and compared (`read_back.check_export`; graphs by onnxruntime), and
    only then moved to `out`.

    Args:
        model: a model folder, or the folder of a run.
        out: a new or empty folder; for the original format also a .ckpt, .pt or .safetensors file.
        format: the program that is to read it.
        overwrite: replace an existing output.

    Raises UserError for anything that the format cannot express, an output in use, a full disk, and an export that does
    not read back as the model; nothing is left behind then.

    Example:
        >>> notes = sfumato.export_model("runs/images", "for-diffusers", "diffusers")
        >>> sorted(path.name for path in Path("for-diffusers").iterdir())
        ['model_index.json', 'scheduler', 'sfumato.yaml', 'unet', 'vqvae']
    """
    folder, out = find_folder(model), Path(out)
    single = format == "original" and out.suffix in SINGLE_FILES
    place = out_is_free(out, (Path(model), folder), overwrite, single)
    if single:
        out_is_free(out.with_suffix(".yaml"), (Path(model), folder), overwrite, single)
    opened = open_networks(folder)  # missing or non-finite weights are reported before anything is written
    with no_new_parents_on_error(place), exclusive(place):
        fresh, scratch = (place.with_name(f".{place.name}.{end}") for end in ("new", "check"))
        try:
            notes = _written(folder, opened, fresh, place if single else None, format, scratch)
            _put_in_place(fresh, place, single)
        except (OSError, shutil.Error) as error:
            raise UserError(f"the export to {str(out)!r} could not be written: {error}") from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.rmtree(scratch, ignore_errors=True)
    return notes


def _written(
    folder: Path, opened: Networks, fresh: Path, file: Path | None, format: str, scratch: Path
) -> tuple[str, ...]:
    """Writes into the folder `fresh` (a single `file` under its name), and compares."""
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    if format == "original":
        done = export_original(folder, fresh if file is None else fresh / file.name)
        check_export(folder, opened, done.checkpoint, done.config, scratch)
        return done.notes
    if format == "onnx":
        return export_onnx(folder, fresh)
    notes = export_diffusers(folder, fresh)
    check_export(folder, opened, fresh, None, scratch)
    return notes


def _put_in_place(fresh: Path, place: Path, single: bool) -> None:
    if not single:
        swap_folder(fresh, place)
        return
    for path in sorted(fresh.iterdir(), key=lambda path: path.name == place.name):  # the checkpoint last
        path.replace(place.parent / path.name)
