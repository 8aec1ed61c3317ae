"""Containers on this machine and on others: their versions, local copies, and indices in the cache."""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, TypeVar

from sfumato.checkpoint import write_text
from sfumato.data.containers.addresses import is_remote
from sfumato.data.containers.config import ContainersConfig
from sfumato.data.containers.downloads import Downloads, Unavailable
from sfumato.data.containers.index import FORMAT, Index, Stored, dumped, loaded
from sfumato.data.contents import is_settled, signature_of
from sfumato.errors import UserError

T = TypeVar("T")
INDICES = "indices"
"""The folder of the cache with the indices of containers."""
_GIB = 2**30
_TRIES = 20


@dataclass(frozen=True)
class Form:
    """A kind of containers: `what` one is called, the `ending` of its files, and how they are read.

    `read(path, address, config)` raises DamagedContainer; `opened(path, stored)` opens an image in it, and raises
    OSError.
    """

    what: str
    ending: str
    read: Callable[[Path, str, ContainersConfig], Index]
    opened: Callable[[Path, Stored], IO[bytes]]


@dataclass(frozen=True)
class Container:
    """A file with images; `name` stands for it in the images' names, `version` is what was indexed."""

    address: str
    name: str
    version: str


class Storage:
    """Local paths of containers, and their indices."""

    def __init__(self, form: Form, config: ContainersConfig, cache: Path | None) -> None:
        """Without `cache` copies are kept in a temporary folder, and indices nowhere."""
        self.form, self._config, self._cache = form, config, cache
        self._temporary = tempfile.TemporaryDirectory(prefix="sfumato-") if cache is None else None
        folder = cache or Path(self._temporary.name if self._temporary is not None else "")
        self._downloads = Downloads(folder, int(config.keep_gib * _GIB))

    def version(self, address: str) -> str:
        """Names the file as it is now; raises Unavailable."""
        if is_remote(address):
            return self._downloads.key(address)
        try:
            file = os.path.join(address, _DATA) if os.path.isdir(address) else address
            return blake2b(signature_of(os.stat(file)), digest_size=16).hexdigest()
        except OSError as error:
            raise Unavailable(error.strerror or str(error)) from None

    def path(self, container: Container) -> Path:
        """Where the file is on this machine, copied there if need be; raises Unavailable."""
        if is_remote(container.address):
            return self._downloads.path(container.address, container.version)
        return Path(container.address)

    def index(self, container: Container) -> Index:
        """From the cache, or from the file. Raises DamagedContainer and Unavailable."""
        kept = None if self._cache is None else self._cache / INDICES / f"{self._key(container)}.json"
        if kept is not None and kept.exists():
            with suppress(OSError):
                before = loaded(kept.read_text(encoding="utf-8"))
                if before is not None:
                    return before
        settled = is_remote(container.address) or is_settled(Path(container.address))
        found = self._used(container, lambda path: self.form.read(path, container.address, self._config))
        if kept is not None and settled and self.version(container.address) == container.version:
            with suppress(UserError):  # only a cache: without space or permission the file is read again
                write_text(kept, dumped(found))
        return found

    def opened(self, container: Container, stored: Stored) -> IO[bytes]:
        """An image's bytes. Raises OSError."""
        try:
            return self._used(container, lambda path: self.form.opened(path, stored))
        except Unavailable as error:
            raise OSError(f"{self.form.what} {container.address} cannot be read: {error}") from None

    def _used(self, container: Container, use: Callable[[Path], T]) -> T:
        """`use(local path)`; a copy that another process removes meanwhile, to make room, is fetched again.

        Raises Unavailable.
        """
        for _ in range(_TRIES if is_remote(container.address) else 1):
            with suppress(FileNotFoundError):
                return use(self.path(container))
        raise Unavailable("it does not exist any more")

    def _key(self, container: Container) -> str:
        """Names an index: by the file, and the settings that its content depends on."""
        config = self._config.model_dump(mode="json", include=_READ_BY)
        facts = (FORMAT, self.form.what, container.version, sorted(config.items()))
        return blake2b(repr(facts).encode(), digest_size=16).hexdigest()


_DATA = "data.mdb"
_READ_BY = {"max_pixels", "encoding", "caption_lines", "image_column"}
"""Settings that an index depends on."""
