"""Images in shards as one numbered set: read once for an index, then each image from its place."""

import io
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil
from pathlib import Path, PurePosixPath
from typing import IO

from sfumato.checkpoint import write_text
from sfumato.data.contents import is_settled, signature_of
from sfumato.data.dataset import Blocks, Progress
from sfumato.data.image_dataset import ImageDataset
from sfumato.data.left_out import left_out_note
from sfumato.data.metadata import Row, columns_of, merged
from sfumato.data.packed import ImageFile, Packed, part_of
from sfumato.data.scan import Described, Scan, at_most, chosen, described
from sfumato.data.shards.addresses import ENDING, is_remote, shard_addresses
from sfumato.data.shards.config import ShardsConfig
from sfumato.data.shards.downloads import Downloads, Unavailable
from sfumato.data.shards.index import FORMAT, Index, Sample, Stored, dumped, loaded, read_index
from sfumato.data.shards.tar import DamagedShard
from sfumato.errors import UserError

_THREADS = 4
_AT_ONCE = 2**20
"""Bytes of an image up to which it is read at once."""
_GIB = 2**30
_TRIES = 3


@dataclass(frozen=True)
class _Shard:
    """A shard and the version of it that was indexed."""

    address: str
    name: str
    key: str


class _Storage:
    """Local paths of shards, and their indices in the cache."""

    def __init__(self, config: ShardsConfig, cache: Path | None) -> None:
        self._config = config
        self._temporary = tempfile.TemporaryDirectory(prefix="sfumato-") if cache is None else None
        self.cache = cache
        folder = Path(self._temporary.name) if self._temporary is not None else cache
        assert folder is not None
        self._downloads = Downloads(folder, int(config.keep_gib * _GIB))

    def version(self, address: str) -> str:
        """Names the shard as it is now; raises Unavailable."""
        if is_remote(address):
            return self._downloads.key(address)
        try:
            return blake2b(signature_of(os.stat(address)), digest_size=16).hexdigest()
        except OSError as error:
            raise Unavailable(error.strerror or str(error)) from None

    def path(self, shard: _Shard) -> Path:
        """Where the shard is on this machine, copied there if need be; raises Unavailable."""
        return self._downloads.path(shard.address, shard.key) if is_remote(shard.address) else Path(shard.address)

    def index(self, shard: _Shard) -> Index:
        """The shard's index, from the cache or the shard. Raises DamagedShard and Unavailable."""
        facts = (FORMAT, shard.key, self._config.max_pixels, self._config.encoding, self._config.caption_lines)
        key = blake2b(repr(facts).encode(), digest_size=16).hexdigest()
        kept = None if self.cache is None else self.cache / "shards" / f"{key}.json"
        if kept is not None and kept.exists():
            with suppress(OSError):
                found = loaded(kept.read_text(encoding="utf-8"))
                if found is not None:
                    return found
        path = self.path(shard)
        settled = is_remote(shard.address) or is_settled(path)
        found = read_index(path, shard.address, self._config)
        if kept is not None and settled and self.version(shard.address) == shard.key:
            with suppress(UserError):  # only a cache: without space or permission the shard is read again
                write_text(kept, dumped(found))
        return found


class ShardPlaces:
    """Images by their names SHARD/MEMBER; companions are members of the same key: KEY.KIND.png."""

    def __init__(self, storage: _Storage, found: dict[str, tuple[_Shard, Sample]]) -> None:
        self._storage, self._found = storage, found

    def place(self, name: str) -> ImageFile:
        shard, sample = self._found[name]
        return self._packed(shard, sample.image)

    def hashes(self, names: Sequence[str], cache: Path | None = None, progress: Progress | None = None) -> list[bytes]:
        """As the index has them, as long as the shard has not changed."""
        same: dict[str, bool] = {}
        hashes = []
        for number, name in enumerate(names, 1):
            shard, sample = self._found[name]
            if shard.address not in same:
                same[shard.address] = self._unchanged(shard)
            hashes.append(bytes.fromhex(sample.digest) if same[shard.address] else b"")
            if progress is not None:
                progress(number, len(names))
        return hashes

    def companions(self, names: Sequence[str], kind: str) -> dict[str, ImageFile]:
        """Members KEY.KIND.png, or KEY.map.png for the kind `maps`."""
        found: dict[str, ImageFile] = {}
        missing: list[str] = []
        for name in dict.fromkeys(names):
            shard, sample = self._found[name]
            stored = sample.further.get(kind) or sample.further.get(kind.removesuffix("s"))
            if stored is None:
                missing.append(name)
            else:
                found[name] = self._packed(shard, stored)
        if missing:
            stem = PurePosixPath(missing[0]).with_suffix("")
            raise UserError(
                f"{len(missing)} of {len(set(names))} images have no label map: the first is {missing[0]}, expected as "
                f"{stem}.{kind}.png in its shard; add the maps or take the images out"
            )
        return found

    def _unchanged(self, shard: _Shard) -> bool:
        try:
            return self._storage.version(shard.address) == shard.key
        except Unavailable:
            return False

    def _packed(self, shard: _Shard, stored: Stored) -> Packed:
        return Packed(f"{shard.address}/{stored.name}", stored.size, lambda: self._opened(shard, stored))

    def _opened(self, shard: _Shard, stored: Stored) -> IO[bytes]:
        for last in (*[False] * (_TRIES - 1), True):
            try:
                return _part(self._storage.path(shard), stored)
            except Unavailable as error:
                raise OSError(f"shard {shard.address} cannot be read: {error}") from None
            except FileNotFoundError:  # another process has removed the copy to make room
                if last or not is_remote(shard.address):
                    raise OSError(f"shard {shard.address} does not exist any more") from None
        raise AssertionError("the last try returns or raises")


def _part(path: Path, stored: Stored) -> IO[bytes]:
    if stored.size > _AT_ONCE:
        return part_of(path, stored.start, stored.size)
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return io.BytesIO(os.pread(file, stored.size, stored.start))
    finally:
        os.close(file)


class ShardDataset(ImageDataset):
    """The images of shards; rows of one shard follow each other."""

    def __init__(self, config: ShardsConfig, progress: Progress | None = None, cache: Path | None = None) -> None:
        """Reads every shard once for its index, which is kept in `cache`; `progress` counts shards.

        Raises UserError if a shard does not exist, more than `config.most_damaged` are damaged, or there is no image.
        """
        addresses = shard_addresses(config.path)
        storage = _Storage(config, cache)
        found = _indexed(storage, addresses, _names(addresses), config, progress)
        scan, places = _scanned(config, addresses, storage, found)
        super().__init__(config, scan, places, cache)


_Indexed = list[tuple[_Shard, Index | str]]
"""Each shard with its index, or the reason why it is skipped."""


def _names(addresses: Sequence[str]) -> list[str]:
    """Short names of the shards: without what all addresses begin with, and without the ending."""
    folders = {address.rpartition("/")[0] for address in addresses}
    base = os.path.commonpath(list(folders)) + "/" if len(folders) > 1 and "" not in folders else ""
    stems = [address.removeprefix(base) if base else address.rpartition("/")[2] for address in addresses]
    return [stem.removesuffix(ENDING) for stem in stems]


def _indexed(
    storage: _Storage, addresses: Sequence[str], names: Sequence[str], config: ShardsConfig, progress: Progress | None
) -> _Indexed:
    def one(address: str, name: str) -> tuple[_Shard, Index | str]:
        shard = _Shard(address, name, "")
        try:
            shard = _Shard(address, name, storage.version(address))
            return shard, storage.index(shard)
        except (DamagedShard, Unavailable) as error:
            return shard, str(error)

    found: _Indexed = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for done, each in enumerate(pool.map(one, addresses, names), 1):
            found.append(each)
            if progress is not None:
                progress(done, len(addresses))
    bad = [(shard.address, index) for shard, index in found if isinstance(index, str)]
    most = ceil(config.most_damaged * len(found)) if config.most_damaged < 1 else int(config.most_damaged)
    if len(bad) > most or len(bad) == len(found):
        raise UserError(
            f"{len(bad)} of {len(found)} shards cannot be read, more than data.most_damaged = "
            f"{config.most_damaged:g} allows: the first is {bad[0][0]} ({bad[0][1]}); fetch them again, or leave them "
            "out of data.path"
        )
    return found


def _scanned(
    config: ShardsConfig, addresses: Sequence[str], storage: _Storage, found: _Indexed
) -> tuple[Scan, ShardPlaces]:
    """What a training reads of the indexed shards. Raises UserError if no image can be read."""
    root = root_of(addresses)
    samples: dict[str, tuple[_Shard, Sample]] = {}
    rows: list[Row] = []
    unreadable: list[tuple[str, str]] = []
    left_out: list[tuple[str, str]] = []
    for shard, index in found:
        if isinstance(index, str):
            unreadable.append((shard.address, f"the shard is skipped: {index}"))
            continue
        unreadable += [(f"{shard.name}/{member}", reason) for member, reason in index.unreadable]
        left_out += [(f"{shard.name}/{member}", reason) for member, reason in index.left_out]
        for sample in index.samples:
            name = f"{shard.name}/{sample.image.name}"
            samples[name] = (shard, sample)
            rows.append(Row(name, sample.values, f"{shard.address}/{sample.image.name}"))
    if not rows:
        first = f": the first, {unreadable[0][0]}, fails with: {unreadable[0][1]}" if unreadable else ""
        raise UserError(f"the {len(found)} shards of {config.path} contain no image that can be read{first}")
    rows, beyond = at_most(merged(chosen(rows, config.where)), config.most_images)
    notes = [f"{beyond} of {beyond + len(rows)} images are not used: data.most_images"] if beyond else []
    bad = [(shard, reason) for shard, reason in found if isinstance(reason, str)]
    if bad:
        notes.append(
            f"{len(bad)} of {len(found)} shards {'is' if len(bad) == 1 else 'are'} skipped: the first is "
            f"{bad[0][0].address} ({bad[0][1]})"
        )
    headers = {row.file: samples[row.file][1].header for row in rows}
    members = [Row(samples[row.file][1].image.name, row.values, row.where) for row in rows]
    about: Described = described(config, root, rows, headers, named=members)
    notes += [*about.notes, *filter(None, [left_out_note(left_out)])]
    scan = Scan(
        root=root,
        source=config.path,
        files=tuple(row.file for row in rows),
        headers=tuple(headers[row.file] for row in rows),
        texts=about.captions.first(),
        labels=about.labels.numbers,
        classes=about.labels.classes,
        columns=columns_of(rows, config.columns),
        metadata=tuple(row.values for row in rows),
        unreadable=tuple(unreadable),
        notes=tuple(notes),
        captions=about.captions.choices,
        left_out=tuple(left_out),
        unread_columns=about.unread,
        blocks=Blocks(_starts([samples[row.file][0].address for row in rows]), config.together),
    )
    return scan, ShardPlaces(storage, {row.file: samples[row.file] for row in rows})


def root_of(addresses: Sequence[str]) -> Path:
    """The folder of the first shard; for shards of other machines the current folder."""
    return Path() if is_remote(addresses[0]) else Path(addresses[0]).parent


def _starts(owners: Sequence[str]) -> tuple[int, ...]:
    """Where the rows of each owner begin, and the number of rows."""
    changes = [row for row in range(len(owners)) if row == 0 or owners[row] != owners[row - 1]]
    return (*changes, len(owners))
