"""Exclusive writing to a folder, by a lock of the operating system that is released when its holder ends."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sfumato.errors import UserError

POLL_SECONDS = 0.2


def lock_path(folder: Path) -> Path:
    """The lock of a folder, beside it, so that the folder itself can be replaced while the lock is held."""
    return folder.with_name(f".{folder.name}.lock")


@contextlib.contextmanager
def exclusive(folder: Path, *, wait: bool = False, log: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds the exclusive lock of `folder` within the block; the folder itself need not exist.

    The operating system releases the lock when the process ends, however it ends: a dead holder never blocks.

    Args:
        folder: the folder to write to.
        wait: wait for another holder instead of raising; `log` is then called once with a message that names it.
        log: receives that message.

    Raises:
        UserError: another process holds the lock, named by its number, host and command; or the folder
            cannot be written to.
    """
    path = lock_path(folder.absolute())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _acquired(path, folder, wait, log)
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be written to: {error.strerror or error}") from error
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(_identity()).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while the lock is held: a waiting process then opens a new file here
        os.close(file)


def writer(folder: Path) -> int | None:
    """The process of this machine that holds the lock of `folder`, by what it recorded there; None if there is none.

    The lock itself is not touched: looking at a run never keeps another process from starting there.
    """
    try:
        about = json.loads(lock_path(folder.absolute()).read_text(encoding="utf-8"))
        pid = int(about["process"])
        if about["host"] != socket.gethostname():
            return None
        os.kill(pid, 0)
    except PermissionError:
        return pid
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return pid


def _acquired(path: Path, folder: Path, wait: bool, log: Callable[[str], None] | None) -> int:
    """The open, locked file at `path`."""
    announced = False
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(file)
            os.close(file)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            if not wait:
                raise UserError(
                    f"{str(folder)!r} is being written by {holder}: wait until it has ended, or give another folder"
                ) from None
            if log is not None and not announced:
                log(f"waiting for {holder}, which is writing {folder}")
                announced = True
            time.sleep(POLL_SECONDS)
            continue
        if _is_still(file, path):
            return file
        os.close(file)  # its holder removed it after it was opened here and before it was locked


def _is_still(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _identity() -> dict[str, str | int]:
    return {"process": os.getpid(), "host": socket.gethostname()}


def _holder(file: int) -> str:
    """The holder of the lock, as recorded in its file."""
    try:
        about = json.loads(os.pread(file, 4096, 0))
        return f"process {int(about['process'])} on {about['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
