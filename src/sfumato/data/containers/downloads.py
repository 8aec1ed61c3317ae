"""Files of other machines, copied into the cache as a whole when they are needed: by HTTP, or by fsspec."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from sfumato.data.containers import web
from sfumato.data.leftovers import draft_path
from sfumato.errors import UserError
from sfumato.locks import exclusive

T = TypeVar("T")
WAITS: tuple[float, ...] = (0.5, 2.0, 8.0)
"""Seconds before a failed download is tried again."""
_VERSION = ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "generation")
"""Names of a file's version in file systems."""


class Unavailable(Exception):  # noqa: N818 - a verdict on a file
    """A file that cannot be read; the text is the reason."""


class Downloads:
    """Copies of files in a folder, at most `budget` bytes; several processes may share it."""

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder, self.budget = folder, budget

    def key(self, address: str) -> str:
        """Names the address and the version of what is there. Raises Unavailable."""
        return blake2b(repr((address, _tried(_version, address))).encode(), digest_size=16).hexdigest()

    def path(self, address: str, key: str) -> Path:
        """A local copy, made now if there is none. Raises Unavailable, and UserError if the disk is full."""
        target = self.folder / f"copy-{key}"
        if not target.exists():
            with exclusive(target, wait=True):
                if not target.exists():
                    self._fetch(address, target)
        with suppress(OSError):
            os.utime(target)  # by which the longest unused is found
        return target

    def _fetch(self, address: str, target: Path) -> None:
        draft = draft_path(target, os.getpid())
        try:
            _tried(lambda place: _copy(place, draft), address)
            with exclusive(self.folder / "copies", wait=True):  # another file may be fetched at the same time
                self._make_room(draft.stat().st_size)
                draft.rename(target)
        except OSError as error:
            raise UserError(f"{address} cannot be kept in {self.folder}: {error.strerror or error}") from None
        finally:
            draft.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Removes the copies that were not used for longest until `size` bytes more fit into the budget."""
        kept: list[tuple[float, int, Path]] = []
        for one in self.folder.glob("copy-*"):
            with suppress(FileNotFoundError):  # another process has removed it
                kept.append((one.stat().st_mtime, one.stat().st_size, one))
        total = sum(bytes_ for _, bytes_, _ in kept)
        for _, bytes_, one in sorted(kept):
            if total + size <= self.budget:
                return
            total -= bytes_
            one.unlink(missing_ok=True)


def listed(pattern: str) -> list[str]:
    """The addresses that fit a pattern with stars. Raises UserError if the place cannot be listed."""
    if _is_web(pattern):
        raise UserError(f"data.path {pattern} cannot be listed: give the files' names, such as {{000000..000009}}.tar")
    try:
        return _tried(_fitting, pattern)
    except Unavailable as reason:
        raise UserError(f"data.path {pattern} cannot be listed ({reason}): give the names of the files") from None


def _is_web(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def _version(address: str) -> tuple[Any, ...]:
    if _is_web(address):
        return web.version_of(address)
    fs, place = _file_system(address)
    about = fs.info(place)
    return tuple(str(about[name]) for name in _VERSION if about.get(name) is not None)


def _copy(address: str, target: Path) -> None:
    if _is_web(address):
        web.copy(address, target)
    else:
        fs, place = _file_system(address)
        fs.get_file(place, str(target))


def _fitting(pattern: str) -> list[str]:
    fs, place = _file_system(pattern)
    return sorted(map(fs.unstrip_protocol, fs.glob(place)))


def _file_system(address: str) -> tuple[Any, str]:
    if find_spec("fsspec") is None:
        raise UserError(f"data.path {address} is read by fsspec: pip install 'sfumato[shards]' to use it")
    from fsspec.core import url_to_fs

    try:
        found: tuple[Any, str] = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UserError(f"data.path {address} cannot be read: {str(error).splitlines()[0]}") from None
    return found


def _tried(use: Callable[[str], T], address: str) -> T:
    """`use(address)`, tried again after errors of the network. Raises Unavailable."""
    for wait in (*WAITS, None):
        try:
            return use(address)
        except FileNotFoundError:
            raise Unavailable("there is no such file") from None
        except UserError:
            raise
        except Exception as error:  # every file system has its own
            if wait is None:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise Unavailable(f"{urlsplit(address).netloc} answers: {reason}") from None
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")
