"""Folders that are replaced as a whole: writing a new version, and reading one version while others are written.

A version is written beside the folder, as `.NAME.new`, and replaces it by two renames; in between the previous one
is at `.NAME.old`. `config.yaml` of a version lists the checksums of its safetensors files in comments, so that a folder
with files of several versions, such as a copy made during a save, is recognised.
"""

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from sfumato.checkpoint import remove_leftovers, stored_checksum, write_text
from sfumato.errors import UserError

CONFIG_FILE = "config.yaml"
NEW, OLD = ".{}.new", ".{}.old"
"""The names of a folder's next version while it is written, and of the previous one while it is replaced."""
TINY_DECODER_FILE = "tiny_decoder.safetensors"
"""Is added to an existing version, and contains the digest of its autoencoder itself."""
PATIENCE = 20.0
"""Seconds for which a reader retries if the folder was replaced meanwhile."""
READERS = 10.0
"""Most seconds for which a finished version waits for readers of the previous one."""
PAUSE = 0.005
_LISTED = re.compile(r"^# ([^\s].*\.safetensors) ([0-9a-f]{8})$", re.MULTILINE)
T = TypeVar("T")


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to fill, which then replaces `folder`; on failure nothing changes.

    Raises UserError if it cannot be created or moved there.
    """
    folder = folder.resolve()
    fresh = folder.with_name(NEW.format(folder.name))
    tidy(folder)
    try:
        try:
            fresh.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{str(folder)!r} could not be written: {error}") from error
        yield fresh
        _list_checksums(fresh)
        swap_folder(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Removes leftovers of a dead writer beside a folder and in it, and restores the version that it was replacing.

    To be called only by the one process that may write here.
    """
    folder = folder.resolve()
    shutil.rmtree(folder.with_name(NEW.format(folder.name)), ignore_errors=True)
    old = folder.with_name(OLD.format(folder.name))
    if old.is_dir():
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                old.rename(folder)
    remove_leftovers(folder)


def swap_folder(fresh: Path, folder: Path) -> None:
    """Replaces a folder by a finished one. Raises UserError if that fails; the old one stays then."""
    old = folder.with_name(OLD.format(folder.name))
    try:
        with _locked(folder, fcntl.LOCK_EX, READERS):
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
                folder.rename(old)
            fresh.rename(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise UserError(f"{str(folder)!r} could not be replaced: {error}") from error
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path, kind: int, patience: float) -> Iterator[None]:
    """Holds the folder's own lock: readers share it, and a writer that replaces the folder waits for them for a limited
    time. Where locks are not supported, as on some network drives, the block is entered without.
    """
    try:
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        limit = time.monotonic() + patience
        while not _takes(place, kind) and time.monotonic() < limit:
            time.sleep(PAUSE)
        yield
    finally:
        os.close(place)


def _takes(place: int, kind: int) -> bool:
    """Whether a lock was acquired, or locks are not supported."""
    try:
        fcntl.flock(place, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _list_checksums(fresh: Path) -> None:
    """Writes the checksums of a version's files, and of those of versions inside it, into its `config.yaml`."""
    config = fresh / CONFIG_FILE
    if not config.exists():
        return
    files = [path for path in sorted(fresh.rglob("*.safetensors")) if path.name != TINY_DECODER_FILE]
    found = {str(path.relative_to(fresh)): stored_checksum(path) for path in files}
    lines = [f"# {name} {checksum}\n" for name, checksum in found.items() if checksum is not None]
    write_text(config, "".join(lines) + config.read_text(encoding="utf-8"))


def newest_version(path: Path, files: Sequence[str]) -> Path | None:
    """The folder that holds these files: `model` in a run's folder `path`, `path` itself, or, while one of them is
    replaced, its previous version; None if there is none."""
    replaced = [folder.with_name(OLD.format(folder.name)) for folder in (path / "model", path) if folder.name]
    folders = (path / "model", path, *replaced)
    return next((folder for folder in folders if all((folder / name).exists() for name in files)), None)


def read_one_version(find: Callable[[], Path], read: Callable[[Path], T]) -> T:
    """The result of `read` for the folder that `find` returns; retried if the folder was replaced meanwhile.

    Raises UserError as the two do, if the folder's files belong to several versions, or if it is replaced repeatedly.
    """
    limit = time.monotonic() + PATIENCE
    while True:
        folder = _found(find)
        with _locked(folder, fcntl.LOCK_SH, READERS):
            before = _stamp(find)
            failure: Exception | None = None
            try:
                result = read(folder)
                _check_checksums(folder)
            except (UserError, OSError) as error:
                failure = error
            if before is not None and _stamp(find) == before:
                if failure is not None:
                    raise failure
                return result
        if time.monotonic() > limit:
            raise UserError(f"{str(folder)!r} is replaced repeatedly while it is read: try later, or copy it")
        time.sleep(PAUSE)


def _found(find: Callable[[], Path]) -> Path:
    """The folder; searched for twice, as the first search may have been between the two renames."""
    try:
        return find()
    except UserError:
        time.sleep(PAUSE)
        return find()


def _stamp(find: Callable[[], Path]) -> tuple[int, ...] | None:
    """Numbers that change whenever another version replaces a folder; None if there is no folder."""
    try:
        folder = find()
        place, config = folder.stat(), (folder / CONFIG_FILE).stat()
    except (UserError, OSError):
        return None
    return (place.st_dev, place.st_ino, config.st_ino, config.st_mtime_ns)


def _check_checksums(folder: Path) -> None:
    """Raises UserError if a file's checksum is not the one that `config.yaml` lists."""
    text = (folder / CONFIG_FILE).read_text(encoding="utf-8", errors="replace")
    for name, listed in _LISTED.findall(text):
        found = stored_checksum(folder / name)
        if found is not None and found != listed:
            raise UserError(
                f"the files in {str(folder)!r} are of different versions of the model: {name} is not the one that "
                f"{CONFIG_FILE} lists; was the folder copied while it was written? copy it again"
            )
