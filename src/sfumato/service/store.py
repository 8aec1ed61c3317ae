"""Results and uploads on disk: a folder of bounded size whose oldest entries are removed first."""

import re
import secrets
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sfumato.checkpoint import replacing
from sfumato.errors import UserError

JOBS, UPLOADS = "jobs", "uploads"
IDENTIFIER = re.compile(r"[0-9a-f]{16}")


def new_id() -> str:
    """A name that cannot be guessed, safe as a file's."""
    return secrets.token_hex(8)


def is_id(text: str) -> bool:
    """Whether a text has the form of `new_id`, so that it names nothing outside the folder."""
    return IDENTIFIER.fullmatch(text) is not None


@dataclass
class Store:
    """The folder. `on_removed(kind, id)` is called for an entry that was removed to keep the size."""

    folder: Path
    limit: int
    on_removed: Callable[[str, str], None] = lambda kind, name: None
    _sizes: dict[tuple[str, str], int] = field(default_factory=dict)
    _held: set[tuple[str, str]] = field(default_factory=set)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        for kind in (JOBS, UPLOADS):
            try:
                (self.folder / kind).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = error.strerror or str(error)
                raise UserError(f"--out {str(self.folder)!r} cannot be written to: {reason}; give another") from None
            found = [path for path in (self.folder / kind).iterdir() if is_id(path.name) and path.is_dir()]
            for path in sorted(found, key=lambda path: path.stat().st_mtime_ns):
                self._sizes[kind, path.name] = _size(path)

    def names(self, kind: str) -> list[str]:
        """The entries of a kind, the oldest first."""
        with self._lock:
            return [name for each, name in self._sizes if each == kind]

    def path(self, kind: str, name: str, file: str) -> Path:
        """Where a file of an entry is."""
        return self.folder / kind / name / file

    def write(self, kind: str, name: str, file: str, content: bytes) -> Path:
        """Writes a file of an entry, complete or not at all, and removes the oldest entries beyond the limit."""
        path = self.path(kind, name, file)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        with self._lock:
            self._sizes[kind, name] = self._sizes.get((kind, name), 0) + len(content)
        self._remove_oldest((kind, name))
        return path

    def discard(self, kind: str, name: str, file: str) -> None:
        """Removes a file of an entry, if it is there."""
        path = self.path(kind, name, file)
        with suppress(FileNotFoundError), self._lock:
            size = path.stat().st_size
            path.unlink()
            self._sizes[kind, name] = max(0, self._sizes.get((kind, name), 0) - size)

    def hold(self, kind: str, name: str) -> None:
        """Keeps an entry until it is released: its job runs."""
        with self._lock:
            self._held.add((kind, name))

    def release(self, kind: str, name: str) -> None:
        """Ends `hold`."""
        with self._lock:
            self._held.discard((kind, name))

    def remove(self, kind: str, name: str) -> None:
        """Removes an entry."""
        with self._lock:
            self._sizes.pop((kind, name), None)
            self._held.discard((kind, name))
        if is_id(name):
            shutil.rmtree(self.folder / kind / name, ignore_errors=True)

    @property
    def size(self) -> int:
        """Bytes of all entries."""
        with self._lock:
            return sum(self._sizes.values())

    def _remove_oldest(self, but: tuple[str, str]) -> None:
        while self.size > self.limit:
            with self._lock:
                oldest = next((entry for entry in self._sizes if entry != but and entry not in self._held), None)
            if oldest is None:
                return
            self.remove(*oldest)
            self.on_removed(*oldest)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
