"""Images inside larger files as one numbered set: each file is read once for an index, then each image by itself."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path, PurePosixPath

from sfumato.data.containers.addresses import is_remote
from sfumato.data.containers.config import ContainersConfig
from sfumato.data.containers.downloads import Unavailable
from sfumato.data.containers.index import DamagedContainer, Index, Sample, Stored
from sfumato.data.containers.storage import Container, Form, Storage
from sfumato.data.dataset import Blocks, Progress
from sfumato.data.image_dataset import ImageDataset
from sfumato.data.left_out import left_out_note
from sfumato.data.metadata import Row, merged
from sfumato.data.packed import ImageFile, Packed
from sfumato.data.scan import NOT_USED, Scan, at_most, chosen, described, scanned
from sfumato.errors import UserError

_THREADS = 4


class ContainerPlaces:
    """Images by their names CONTAINER/MEMBER; companions are members of the same key: KEY.KIND.png."""

    def __init__(self, storage: Storage, found: dict[str, tuple[Container, Sample]]) -> None:
        self._storage, self._found = storage, found

    def place(self, name: str) -> ImageFile:
        container, sample = self._found[name]
        return self._packed(container, sample.image)

    def hashes(self, names: Sequence[str], cache: Path | None = None, progress: Progress | None = None) -> list[bytes]:
        """As the index has them, as long as the container has not changed."""
        same: dict[str, bool] = {}
        hashes = []
        for number, name in enumerate(names, 1):
            container, sample = self._found[name]
            if container.address not in same:
                same[container.address] = self._unchanged(container)
            hashes.append(bytes.fromhex(sample.digest) if same[container.address] else b"")
            if progress is not None:
                progress(number, len(names))
        return hashes

    def companions(self, names: Sequence[str], kind: str) -> dict[str, ImageFile]:
        """Members KEY.KIND.png, or KEY.map.png for the kind `maps`."""
        found: dict[str, ImageFile] = {}
        missing: list[str] = []
        for name in dict.fromkeys(names):
            container, sample = self._found[name]
            stored = sample.further.get(kind) or sample.further.get(kind.removesuffix("s"))
            if stored is None:
                missing.append(name)
            else:
                found[name] = self._packed(container, stored)
        if missing:
            stem = PurePosixPath(missing[0]).with_suffix("")
            raise UserError(
                f"{len(missing)} of {len(set(names))} images have no label map: the first is {missing[0]}, expected as "
                f"{stem}.{kind}.png in its {self._storage.form.what}; add the maps or take the images out"
            )
        return found

    def _unchanged(self, container: Container) -> bool:
        try:
            return self._storage.version(container.address) == container.version
        except Unavailable:
            return False

    def _packed(self, container: Container, stored: Stored) -> Packed:
        place = f"{container.address}/{stored.name}"
        return Packed(place, stored.size, partial(self._storage.opened, container, stored))


_Indexed = Sequence[tuple[Container, Index | str]]
"""Each container with its index, or the reason why it is skipped."""


def open_containers(
    form: Form,
    addresses: Sequence[str],
    config: ContainersConfig,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> ImageDataset:
    """The images of several files; rows of one file follow each other. `progress` counts files.

    Raises UserError if more than `config.most_damaged` files are damaged, or there is no image.
    """
    storage = Storage(form, config, cache)
    found = _indexed(storage, addresses, config, progress)
    scan, places = _scanned(config, addresses, storage, found)
    return ImageDataset(config, scan, places, cache)


def root_of(addresses: Sequence[str]) -> Path:
    """The folder of the first file; for files of other machines the current folder."""
    return Path() if is_remote(addresses[0]) else Path(addresses[0]).parent


def _names(addresses: Sequence[str], ending: str) -> list[str]:
    """Short names: without what all addresses begin with, and without the ending."""
    folders = {address.rpartition("/")[0] for address in addresses}
    base = os.path.commonpath(list(folders)) + "/" if len(folders) > 1 and "" not in folders else ""
    stems = [address.removeprefix(base) if base else address.rpartition("/")[2] for address in addresses]
    return [stem.removesuffix(ending) for stem in stems]


def _indexed(
    storage: Storage, addresses: Sequence[str], config: ContainersConfig, progress: Progress | None
) -> _Indexed:
    what = storage.form.what

    def one(address: str, name: str) -> tuple[Container, Index | str]:
        container = Container(address, name, "")
        try:
            container = Container(address, name, storage.version(address))
            return container, storage.index(container)
        except (DamagedContainer, Unavailable) as error:
            return container, str(error)

    found: list[tuple[Container, Index | str]] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for done, each in enumerate(pool.map(one, addresses, _names(addresses, storage.form.ending)), 1):
            found.append(each)
            if progress is not None:
                progress(done, len(addresses))
    bad = _bad(found)
    most = ceil(config.most_damaged * len(found)) if config.most_damaged < 1 else int(config.most_damaged)
    if len(bad) > most or len(bad) == len(found):
        raise UserError(
            f"{len(bad)} of {len(found)} {what}s cannot be read, more than data.most_damaged = "
            f"{config.most_damaged:g} allows: the first is {bad[0][0]} ({bad[0][1]}); fetch them again, or leave them "
            "out of data.path"
        )
    return found


def _scanned(
    config: ContainersConfig, addresses: Sequence[str], storage: Storage, found: _Indexed
) -> tuple[Scan, ContainerPlaces]:
    """The indexed files as a training reads them. Raises UserError if no image can be read."""
    root, what = root_of(addresses), storage.form.what
    samples: dict[str, tuple[Container, Sample]] = {}
    part_of: dict[str, tuple[str, int]] = {}
    rows: list[Row] = []
    unreadable: list[tuple[str, str]] = []
    left_out: list[tuple[str, str]] = []
    for container, index in found:
        if isinstance(index, str):
            unreadable.append((container.address, f"the {what} is skipped: {index}"))
            continue
        unreadable += [(f"{container.name}/{member}", reason) for member, reason in index.unreadable]
        left_out += [(f"{container.name}/{member}", reason) for member, reason in index.left_out]
        part, begins = -1, set(index.starts)
        for number, sample in enumerate(index.samples):
            part += number in begins
            name = f"{container.name}/{sample.image.name}"
            samples[name] = (container, sample)
            part_of[name] = (container.address, part)
            rows.append(Row(name, sample.values, f"{container.address}/{sample.image.name}"))
    if not rows:
        first = f": the first, {unreadable[0][0]}, fails with: {unreadable[0][1]}" if unreadable else ""
        raise UserError(f"the {len(found)} {what}s of {config.path} contain no image that can be read{first}")
    rows, beyond = at_most(merged(chosen(rows, config.where)), config.most_images)
    notes = [f"{beyond} of {beyond + len(rows)} images {NOT_USED}"] if beyond else []
    notes += _skipped(found, what)
    headers = {row.file: samples[row.file][1].header for row in rows}
    members = [Row(samples[row.file][1].image.name, row.values, row.where) for row in rows]
    about = described(config, root, rows, headers, named=members)
    notes += [*about.notes, *filter(None, [left_out_note(left_out)])]
    scan = replace(
        scanned(config, root, rows, headers, about),
        source=config.path,
        unreadable=tuple(unreadable),
        notes=tuple(notes),
        left_out=tuple(left_out),
        blocks=Blocks(_starts([part_of[row.file] for row in rows]), config.together),
    )
    return scan, ContainerPlaces(storage, {row.file: samples[row.file] for row in rows})


def _bad(found: _Indexed) -> list[tuple[str, str]]:
    """(address, reason) of the files that are skipped."""
    return [(container.address, index) for container, index in found if isinstance(index, str)]


def _skipped(found: _Indexed, what: str) -> list[str]:
    bad = _bad(found)
    if not bad:
        return []
    skipped = f"{what}s {'is' if len(bad) == 1 else 'are'} skipped"
    return [f"{len(bad)} of {len(found)} {skipped}: the first is {bad[0][0]} ({bad[0][1]})"]


def _starts(owners: Sequence[tuple[str, int]]) -> tuple[int, ...]:
    """Where the rows of each owner begin, and the number of rows."""
    changes = [row for row in range(len(owners)) if row == 0 or owners[row] != owners[row - 1]]
    return (*changes, len(owners))
