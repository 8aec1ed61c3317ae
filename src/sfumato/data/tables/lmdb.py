"""Images in LMDB databases: every value is an image file, as in LSUN."""

import io
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from sfumato.data.containers.config import ContainersConfig
from sfumato.data.containers.index import DamagedContainer, Index, Sample, Stored, looked_at
from sfumato.data.containers.storage import Form
from sfumato.data.dataset import UnreadableImage
from sfumato.errors import UserError

DATA, SUFFIX = "data.mdb", "_lmdb"
SPLITS = ("_train", "_val", "_test")


def database_folders(path: str) -> list[str]:
    """The folders of databases that a path means. Raises UserError if there is none."""
    place = Path(path)
    found = [place] if (place / DATA).is_file() else sorted(one.parent for one in place.glob(f"*/{DATA}"))
    if not found:
        raise UserError(f"data.path {path!r} is not an LMDB database: give the folder that holds {DATA}")
    return [str(one) for one in found]


def category_of(folder: Path) -> str:
    """LSUN's name of a category in the name of a database: bedroom of bedroom_train_lmdb."""
    name = folder.name.removesuffix(SUFFIX)
    return next((name.removesuffix(split) for split in SPLITS if name.endswith(split)), name)


def read_database(path: Path, address: str, config: ContainersConfig) -> Index:
    """All images of a database, in the order of their keys; the label is the category in the folder's name."""
    samples: list[Sample] = []
    unreadable: list[tuple[str, str]] = []
    values = {"label": category_of(path)}
    for key, content in _entries(path):
        name = key.hex() if not key.isascii() else key.decode()
        stored = Stored(name, 0 if key.isascii() else 1, len(content))
        try:
            if not content:
                raise UnreadableImage(name, "the file is empty")
            digest, header = looked_at(f"{address}/{name}", len(content), _stream(content), config.max_pixels)
        except UnreadableImage as error:
            unreadable.append((name, error.reason))
            continue
        samples.append(Sample(stored, digest, header, values))
    return Index(tuple(samples), tuple(unreadable))


def open_entry(path: Path, stored: Stored) -> IO[bytes]:
    """An image's bytes. Raises OSError."""
    key = bytes.fromhex(stored.name) if stored.start else stored.name.encode()
    with _opened(path).begin() as transaction:
        content = transaction.get(key)
    if content is None:
        raise OSError(f"the database has no entry {stored.name!r} any more")
    return io.BytesIO(content)


def _entries(path: Path) -> Iterator[tuple[bytes, bytes]]:
    import lmdb

    try:
        with _opened(path).begin() as transaction:
            yield from transaction.cursor()
    except lmdb.Error as error:
        raise DamagedContainer(str(error)) from None


def _stream(content: bytes) -> Any:
    return lambda: io.BytesIO(content)


@lru_cache(maxsize=64)
def _opened(path: Path) -> Any:
    """The environment of a database; one process may open each only once."""
    try:
        import lmdb
    except ImportError:
        raise UserError("data.kind lmdb needs the package lmdb: pip install 'sfumato[tables]'") from None
    try:
        return lmdb.open(str(path), readonly=True, lock=False, readahead=False, meminit=False, max_readers=1024)
    except lmdb.Error as error:
        raise DamagedContainer(str(error)) from None


DATABASES = Form("database", SUFFIX, read_database, open_entry)
