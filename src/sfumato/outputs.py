"""The folder that a command writes: whether it can be made, held by one process, and left as it was on a refusal."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sfumato.checkpoint import remove_leftovers
from sfumato.errors import SURROUNDINGS, UserError
from sfumato.locks import exclusive
from sfumato.versions import tidy

CACHE = "cache"
LASTING = 60.0
"""Seconds of work from which on a refused command leaves the cache that it has filled: only repeating is cheap."""
_SMALL = 1 << 20


def check_folder(path: Path, name: str = "--out") -> Path:
    """The path, if a folder is there that may be written to, or can be made; nothing is left behind.

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
        for folder in reversed(_made(path)):
            folder.rmdir()
    except OSError as error:
        advice = SURROUNDINGS.get(error.errno or 0, "give another folder")
        raise UserError(f"{shown} cannot be made: {error.strerror or error}; {advice}") from None
    return path


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}…{text[-60:]}"


def _made(path: Path) -> list[Path]:
    """Makes a folder with all above it that are missing, and lists them, outermost first."""
    made: list[Path] = []
    try:
        for folder in reversed(_missing(path)):
            folder.mkdir()
            made.append(folder)
    except OSError:
        for folder in reversed(made):
            folder.rmdir()
        raise
    return made


def _missing(path: Path) -> list[Path]:
    """What is not there of a path and the folders above it, innermost first."""
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
    """Within the block this process alone writes to `folder`: what dead ones left in it is removed before.

    Where the block ends in a UserError, or on a full disk, before the work has `begun`, what it made in `folder` and
    `cache` is removed again, and so are folders above them that it made.

    Args:
        folder: need not exist.
        name: the option that named it, for errors.
        cache: another folder that is filled on the way, which other processes may use, too.
        begun: whether what was made is worth keeping.

    Raises:
        UserError: the folder cannot be written to, or another process writes to it.
    """
    check_folder(folder, name)
    if cache is not None:
        check_folder(cache, "--cache")
    above = [*_missing(folder.parent), *([] if cache is None else _missing(cache.parent))]
    try:
        with exclusive(folder.resolve()):
            tidy(folder)
            with _undone_on_refusal([folder, *([] if cache is None else [cache])], begun):
                yield
    except (UserError, OSError):
        for empty in above:
            with contextlib.suppress(OSError):
                empty.rmdir()
        raise


@contextlib.contextmanager
def one_set_of_files(folder: Path) -> Iterator[None]:
    """Within the block this process alone writes to the folder: files of fixed names there are of one command.

    It waits for others that do. Raises UserError where the folder cannot be written to.
    """
    with exclusive(folder.resolve(), wait=True):
        remove_leftovers(folder)
        yield


@contextlib.contextmanager
def inside_model(folder: Path) -> Iterator[None]:
    """Within the block no other process replaces a model folder, nor trains the run that it is in.

    Raises UserError where one does, or the folder cannot be written to.
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
    """Removes from a folder what was not among its `entries`, and the folder where it had none and is empty."""
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
