"""Where a command may write a whole folder or file: nothing that is in use is replaced without being asked."""

from collections.abc import Sequence
from pathlib import Path

from sfumato.errors import UserError

RUN_MARK = "states"
"""What a run's folder holds and no model's."""


def out_is_free(out: Path, sources: Sequence[Path] = (), overwrite: bool = False, single_file: bool = False) -> Path:
    """The absolute place of an output that may be written, links resolved.

    Args:
        out: the folder that the command makes, or the file.
        sources: what the command reads; the output may neither be, contain nor lie inside any of them.
        overwrite: the user asked for what stands there to be replaced. A run, the current folder and the home folder
            are never replaced.
        single_file: the output is a file.

    Raises UserError naming the place and the way out; nothing is made or changed.
    """
    try:
        return _checked(out, sources, overwrite, single_file)
    except OSError as error:
        raise UserError(f"the output {str(out)!r} cannot be used: {error.strerror or error}") from None


def _checked(out: Path, sources: Sequence[Path], overwrite: bool, single_file: bool) -> Path:
    if out.is_symlink() and not out.exists():
        raise UserError(f"the output {str(out)!r} is a link that leads nowhere: remove it or give another place")
    place = out.resolve()
    for source in sources:
        _apart(out, place, source)
    if single_file:
        _free_file(out, place, overwrite)
    else:
        _free_folder(out, place, overwrite)
    parent = next(folder for folder in place.parents if folder.exists())
    if not parent.is_dir():
        raise UserError(f"the output {str(out)!r} would lie inside {str(parent)!r}, which is a file")
    return place


def _apart(out: Path, place: Path, source: Path) -> None:
    read = source.resolve()
    if place == read:
        raise UserError(f"the output {str(out)!r} is what is read: give another place")
    if place in read.parents:
        raise UserError(f"the output {str(out)!r} contains what is read, {str(source)!r}: give another place")
    if read in place.parents:
        raise UserError(f"the output {str(out)!r} lies inside what is read, {str(source)!r}: give another place")


def _free_file(out: Path, place: Path, overwrite: bool) -> None:
    if place.is_dir():
        raise UserError(f"the output {str(out)!r} is a folder: give a file")
    if place.exists() and not overwrite:
        raise UserError(f"the output {str(out)!r} exists: give another file, or --overwrite to replace it")


def _free_folder(out: Path, place: Path, overwrite: bool) -> None:
    if place.exists() and not place.is_dir():
        raise UserError(f"the output {str(out)!r} is a file: give a folder")
    if not place.is_dir():
        return
    here = Path.cwd().resolve()
    if any(place == kept or place in kept.parents for kept in (here, Path.home().resolve())):
        raise UserError(f"the output {str(out)!r} is or contains the current or the home folder: give a new folder")
    held = sorted(entry.name for entry in place.iterdir())
    if held and (place / RUN_MARK).is_dir():
        raise UserError(f"the output {str(out)!r} is the folder of a run, which would be lost: give a new folder")
    if held and not overwrite:
        others = f" and {len(held) - 1} more" if len(held) > 1 else ""
        raise UserError(
            f"the output {str(out)!r} is in use, it holds {held[0]!r}{others}: give a new folder, or --overwrite to "
            "replace it"
        )
