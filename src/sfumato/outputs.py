"""Outputs of commands: whether a place may be written, one writer at a time, and cleaning up after an error."""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sfumato.checkpoint import RUN_LOG, RUN_MARK, RUN_PARTS, remove_leftovers
from sfumato.errors import SURROUNDINGS, UserError
from sfumato.locks import exclusive
from sfumato.versions import CONFIG_FILE, tidy

CACHE = "cache"
LASTING = 60.0
"""A failed command that worked longer than this many seconds leaves its cache: shorter work is cheap to repeat."""
_SMALL = 1 << 20


def out_is_free(out: Path, sources: Sequence[Path] = (), overwrite: bool = False, single_file: bool = False) -> Path:
    """The absolute place of an output that may be written, links resolved.

    Args:
        out: the folder or file that the command creates.
        sources: what the command reads; the output may neither be, contain nor be inside any of them.
        overwrite: the user requested that existing output be replaced. A run, a part of one, the current folder and
            the home folder are never replaced.
        single_file: the output is a file.

    Raises UserError with the path and the way out; nothing is created or changed.
    """
    try:
        return _checked(out, sources, overwrite, single_file)
    except OSError as error:
        raise UserError(f"the output {str(out)!r} cannot be used: {error.strerror or error}") from None


def _checked(out: Path, sources: Sequence[Path], overwrite: bool, single_file: bool) -> Path:
    place = Path(os.path.realpath(out))  # Path.resolve raises RuntimeError for a link to itself
    for source in sources:
        _apart(out, place, source)
    if single_file:
        if out.is_symlink() and not out.exists():
            raise UserError(f"the output {str(out)!r} is a link to {str(out.readlink())!r}, which is not there")
        _free_file(out, place, overwrite)
    else:
        check_folder(out, "the output")
        _free_folder(out, place, overwrite)
    parent = next(folder for folder in place.parents if folder.exists())
    if not parent.is_dir():
        raise UserError(f"the output {str(out)!r} would be inside {str(parent)!r}, which is a file")
    return place


def _apart(out: Path, place: Path, source: Path) -> None:
    read = Path(os.path.realpath(source))
    if place == read:
        raise UserError(f"the output {str(out)!r} is also the input: give another path")
    if place in read.parents:
        raise UserError(f"the output {str(out)!r} contains the input, {str(source)!r}: give another path")
    if read in place.parents:
        raise UserError(f"the output {str(out)!r} is inside the input, {str(source)!r}: give another path")


def _free_file(out: Path, place: Path, overwrite: bool) -> None:
    if place.is_dir():
        raise UserError(f"the output {str(out)!r} is a folder: give a file")
    if place.exists() and not overwrite:
        raise UserError(f"the output {str(out)!r} exists: give another file, or --overwrite to replace it")


def _free_folder(out: Path, place: Path, overwrite: bool) -> None:
    if place.exists() and not place.is_dir():
        raise UserError(f"the output {str(out)!r} is a file: give a folder")
    run = _run_of_part(place)
    if run is not None:
        raise UserError(f"the output {str(out)!r} is a part of the run {str(run)!r}, which writes there: give another")
    if not place.is_dir():
        return
    here = Path.cwd().resolve()
    if any(place == kept or place in kept.parents for kept in (here, Path.home().resolve())):
        raise UserError(f"the output {str(out)!r} is or contains the current or the home folder: give a new folder")
    held = sorted(entry.name for entry in place.iterdir())
    if held and ((place / RUN_MARK).is_dir() or _is_run(place)):
        raise UserError(f"the output {str(out)!r} is the folder of a run, which would be lost: give a new folder")
    if held and not overwrite:
        others = f" and {len(held) - 1} more" if len(held) > 1 else ""
        raise UserError(
            f"the output {str(out)!r} is in use, it holds {held[0]!r}{others}: give a new folder, or --overwrite to "
            "replace it"
        )


def _run_of_part(place: Path) -> Path | None:
    """The run that writes to a folder, or into which it leads; None for one that is free, such as in a run's model."""
    for run in place.parents:
        name, *below = place.relative_to(run).parts
        if name in RUN_PARTS and not (name == "model" and below) and _is_run(run):
            return run
    return None


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() and any((folder / name).exists() for name in (RUN_MARK, RUN_LOG))


def check_folder(path: Path, name: str = "--out") -> Path:
    """The path, if it is a writable folder or one that can be created; nothing is left behind.

    Raises UserError that names the option `name`.
    """
    shown = f"{name} {_short(path)!r}"
    try:
        if path.is_dir():
            if not os.access(path, os.W_OK | os.X_OK):
                raise UserError(f"{shown} may not be written to: choose another folder, or change its permissions")
            return path
        if path.is_symlink():
            raise UserError(f"{shown} is a link to {str(path.readlink())!r}, which is not there: give another folder")
        if path.exists():
            raise UserError(f"{shown} is a file: give a folder")
        _remove_empty(_made(path))
    except OSError as error:
        advice = SURROUNDINGS.get(error.errno or 0, "give another folder")
        raise UserError(f"{shown} cannot be created: {error.strerror or error}; {advice}") from None
    return path


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}…{text[-60:]}"


def _made(path: Path) -> list[Path]:
    """Creates a folder and its missing parents, and lists them, outermost first."""
    made: list[Path] = []
    try:
        for folder in reversed(_missing(path)):
            with contextlib.suppress(FileExistsError):  # another process of the run has just created it
                folder.mkdir()
                made.append(folder)
    except OSError:
        _remove_empty(made)
        raise
    return made


def _remove_empty(folders: Sequence[Path]) -> None:
    """Removes folders, given outermost first, but for those that another process already uses or has removed."""
    for folder in reversed(folders):
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise


def _missing(path: Path) -> list[Path]:
    """The missing folders among a path and its parents, innermost first."""
    missing: list[Path] = []
    for folder in (path, *path.parents):
        if folder.exists():
            break
        missing.append(folder)
    return missing


@contextlib.contextmanager
def written(
    folder: Path, name: str = "--out", cache: Path | None = None, begun: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Within the block only this process writes to `folder`; leftovers of dead processes are removed before.

    If the block raises UserError, or the disk fills up, before the work has `begun`, what it created in `folder` and
    `cache` is removed again, and so are the parents that it created.

    Args:
        folder: need not exist.
        name: the option that named it, for errors.
        cache: another folder that is filled meanwhile, which other processes may use, too.
        begun: whether the output so far is worth keeping.

    Raises:
        UserError: the folder cannot be written to, or another process writes to it.
    """
    check_folder(folder, name)
    if cache is not None:
        check_folder(cache, "--cache")
    folders = [folder, *([] if cache is None else [cache])]
    with no_new_parents_on_error(*folders), exclusive(folder.resolve()):
        tidy(folder)
        with _undone_on_refusal(folders, begun):
            yield


@contextlib.contextmanager
def no_new_parents_on_error(*places: Path) -> Iterator[None]:
    """Removes the folders above `places` that were created within the block, if it raises and they are empty."""
    absent = [folder for place in places for folder in _missing(place.absolute().parent)]
    try:
        yield
    except BaseException:
        for folder in absent:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


@contextlib.contextmanager
def one_set_of_files(folder: Path) -> Iterator[None]:
    """Within the block only this process writes to the folder, so that files of fixed names are from one command.

    It waits for other writers. Raises UserError if the folder cannot be written to.
    """
    with exclusive(folder.resolve(), wait=True):
        remove_leftovers(folder)
        yield


@contextlib.contextmanager
def inside_model(folder: Path) -> Iterator[None]:
    """Within the block no other process replaces a model folder, or trains the run that contains it.

    Raises UserError if one does, or the folder cannot be written to.
    """
    folder = folder.resolve()
    with contextlib.ExitStack() as held:
        if (folder.parent / "states").is_dir():
            held.enter_context(exclusive(folder.parent))
        held.enter_context(exclusive(folder))
        yield


@contextlib.contextmanager
def _undone_on_refusal(folders: list[Path], begun: Callable[[], bool]) -> Iterator[None]:
    before = {folder: _entries(folder) for folder in folders}
    texts = {path: path.read_bytes() for path in folders[0].glob("*.yaml") if path.stat().st_size < _SMALL}
    t_start = time.monotonic()
    try:
        yield
    except (UserError, OSError):
        if not begun():
            lasting = time.monotonic() - t_start > LASTING
            _restore(folders[0], before[folders[0]], lasting)
            for folder in folders[1:]:  # others may use it by now
                with contextlib.suppress(OSError):
                    if before[folder] is None:
                        folder.rmdir()
            for path, text in texts.items():
                if not path.exists() or path.read_bytes() != text:
                    path.write_bytes(text)
        raise


def _entries(folder: Path) -> set[str] | None:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else None


def _restore(folder: Path, entries: set[str] | None, lasting: bool) -> None:
    """Removes from a folder what is not among its `entries`, and the folder itself if it did not exist before
    (None)."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name in (entries or ()) or (lasting and path.name == CACHE):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    if entries is None:
        with contextlib.suppress(OSError):
            folder.rmdir()
