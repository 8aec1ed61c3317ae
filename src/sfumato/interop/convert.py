"""The entry points of this package: import any supported format, export to one of them or to ONNX."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from sfumato.errors import UserError
from sfumato.foreign import reading
from sfumato.interop.describe import describe
from sfumato.interop.diffusers_export import export_diffusers
from sfumato.interop.diffusers_folder import is_diffusers_folder
from sfumato.interop.diffusers_import import import_diffusers
from sfumato.interop.diffusers_single import import_single_autoencoder, is_single_autoencoder
from sfumato.interop.onnx.export import export_onnx
from sfumato.interop.original import Imported, import_original
from sfumato.interop.original_export import export_original
from sfumato.interop.placement import Weights
from sfumato.interop.read_back import Networks, check_export, open_networks
from sfumato.interop.source import open_checkpoint, renamed
from sfumato.interop.transformer import find_transformer, import_transformer
from sfumato.locks import exclusive
from sfumato.model import LatentDiffusion
from sfumato.model_folder import find_folder, load
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
    autoencoder: Path | str | None = None,
    heads: int | None = None,
) -> Imported:
    """A model folder from an original checkpoint (a file), a DiT or SiT, or a diffusers folder.

    The options are those of `import_original`; a diffusers folder has its own configuration and accepts none. A DiT or
    SiT takes `prediction` ("eps" or "flow"), `weights`, `autoencoder`, a model or anything else that can be imported
    and has the first stage, and `heads`, if its width is not a published one.
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
        given = {"--config": config, "--tokenizer": tokenizer, "--autoencoder": autoencoder, "--heads": heads}
        return _import(source, out, weights, prediction, given)


def _import(
    source: Path, out: Path, weights: Weights | None, prediction: str | None, given: Mapping[str, Any]
) -> Imported:
    """`given`: the options that only some sources take, by the names of their flags."""
    if not source.is_dir():
        opened = open_checkpoint(source, rename=False)
        transformer = find_transformer(opened, weights)
        if transformer is not None:
            _refuse({name: given[name] for name in ("--config", "--tokenizer")}, "original checkpoints, not for a DiT")
            with TemporaryDirectory(prefix="sfumato-import-") as scratch:
                first = None if given["--autoencoder"] is None else _first_stage(given["--autoencoder"], Path(scratch))
                return import_transformer(opened, transformer, out, first, prediction, given["--heads"])
        only = {name: given[name] for name in ("--autoencoder", "--heads")}
        _refuse({**only, "--prediction flow": prediction if prediction == "flow" else None}, "files of DiT or SiT")
        opened = renamed(opened)
        if is_single_autoencoder(opened):
            return import_single_autoencoder(opened, out)
        return import_original(opened, out, given["--config"], weights, given["--tokenizer"], prediction)
    if (source / "autoencoder.safetensors").exists():
        raise UserError(f"{source} is already a model folder of sfumato; use it as it is")
    if not is_diffusers_folder(source):
        raise UserError(
            f"{source} is not a diffusers folder (no model_index.json or config.json); name the checkpoint file"
        )
    files = {**given, "--weights": weights, "--prediction": prediction}
    _refuse(files, "checkpoint files; a diffusers folder has its own configuration")
    return import_diffusers(source, out)


def _refuse(options: Mapping[str, object], where: str) -> None:
    """Raises UserError for the first option that is given: it is for something else."""
    name = next((name for name, value in options.items() if value is not None), None)
    if name is not None:
        raise UserError(f"{name} is for {where}")


def _first_stage(place: Path | str, scratch: Path) -> LatentDiffusion:
    """A model with the first stage at a place: a model folder or run, or a file or diffusers folder of another
    program, which is imported into `scratch`."""
    path = Path(place)
    if path.is_dir() and is_diffusers_folder(path):
        return load(import_diffusers(path, scratch / "first").folder)
    if path.is_file():
        none = dict.fromkeys(("--config", "--tokenizer", "--autoencoder", "--heads"))
        return load(_import(path, scratch / "first", None, None, none).folder)
    return load(place)


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
