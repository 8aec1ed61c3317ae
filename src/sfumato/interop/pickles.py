"""Reads .ckpt / .pt / .pth files without running them: tensors and plain containers; everything else becomes an inert
stub.

Three containers, all written by `torch.save` at some time: the zip archive (torch >= 1.6), the stream of concatenated
pickles (0.1.10 to 1.5), the tar archive (before). Tensors come back as `StoredTensor`s whose bytes are read on
demand.
"""

import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.foreign import check_regular, short
from sfumato.interop.lazy import SMALL, MappedFile, Storage, StoredTensor, view
from sfumato.interop.pickle_machine import MAX_PICKLE, Machine, PickleError, Stub, storage_dtype

STREAM_MAGIC = 0x1950A86A20F9469CFC6C
STREAM_PROTOCOL = 1001
MAX_EXPANSION = 100  # of a compressed record; weights do not compress further, bombs do
MAX_MEMBERS = 64  # of a tar archive; torch.save wrote four
MAX_PROGRAM = 16 << 20  # of an unpacked pickle
ZIP_START = b"PK\x03\x04"
TAR_MAGIC = b"ustar"
PICKLE_START = b"\x80"


def read_pickle(path: Path | str) -> Any:
    """The object saved in `path`, by the restricted reader.

    Dictionaries, lists, tuples, numbers and text are returned as such (sets as lists), tensors as `StoredTensor`, and
    anything else as an inert `Stub` with its class's name. Nothing named in the file is imported or called.

    Raises UserError for a file that is not a checkpoint, is damaged or truncated, or requests more memory than it
    contains.
    """
    path = Path(path)
    check_checkpoint_file(path)
    file = MappedFile(path)
    try:
        if file.map[:4] == ZIP_START:
            if not zipfile.is_zipfile(path):
                raise UserError(f"{path} is a zip archive without its end: probably half a download; fetch it again")
            return _read_zip(file)
        if file.map[257:262] == TAR_MAGIC and file.map[:1] != PICKLE_START:
            return _read_tar(file)
        return _read_stream(file)
    except PickleError as error:
        raise UserError(f"{path}: {error}") from None


def check_checkpoint_file(path: Path) -> None:
    """Raises UserError unless the path is a regular file."""
    if not os.path.exists(path) or path.is_dir():
        raise UserError(f"{path} is not a file; give a .ckpt, .pt, .pth or .safetensors file")
    check_regular(path)


def _storage_id(value: Any) -> tuple[torch.dtype, str, int, Any]:
    """A persistent id ('storage', class, key, location, elements[, view]) -> element type, key, elements, view."""
    if not isinstance(value, tuple) or len(value) < 5 or value[0] != "storage":
        raise PickleError("the pickle refers to something outside it that is not a storage; refusing to read it")
    kind, key, elements = value[1], value[2], value[4]
    if not isinstance(key, str) or type(elements) is not int or elements < 0:
        raise PickleError("a storage has no proper name or size; the file is damaged")
    return storage_dtype(kind), key, elements, value[5] if len(value) > 5 else None


# -- zip --------------------------------------------------------------------------------------------------------------


def _read_zip(file: MappedFile) -> Any:
    try:
        archive = zipfile.ZipFile(file.path)
        records = {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise UserError(f"{file.path} is a damaged zip archive ({error}); fetch it again") from None
    roots = [name[: -len("data.pkl")] for name in records if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(roots) != 1:
        what = "a TorchScript archive or several" if roots else "no"
        raise UserError(f"{file.path} is a zip archive with {what} data.pkl; it is not a checkpoint of torch.save")
    root = roots[0]
    if f"{root}constants.pkl" in records:
        raise UserError(f"{file.path} is a TorchScript program, not a checkpoint; save its state_dict instead")
    order = records.get(f"{root}byteorder")
    if order is not None and _record(file, archive, order)() != b"little":
        raise UserError(f"{file.path} was written on a big-endian machine; convert it there")
    storages: dict[str, Storage] = {}

    def persistent(value: Any) -> Storage:
        dtype, key, elements, _ = _storage_id(value)
        if key not in storages:
            info = records.get(f"{root}data/{key}")
            if info is None:
                raise PickleError(f"storage {key} is named but not in the archive; the file is damaged")
            nbytes = elements * dtype.itemsize
            if info.file_size != nbytes:
                raise PickleError(
                    f"storage {key} has {info.file_size} bytes where {nbytes} are declared; the file is damaged"
                )
            storages[key] = Storage(key, dtype, nbytes, _tensor_fetcher(file, archive, info))
        if storages[key].dtype != dtype:
            raise PickleError(f"storage {key} is declared with two element types; the file is damaged")
        return storages[key]

    program = records[f"{root}data.pkl"]
    if program.file_size > (MAX_PICKLE if program.compress_type == zipfile.ZIP_STORED else MAX_PROGRAM):
        raise PickleError(f"its structure alone takes {program.file_size} bytes; refusing to read it")
    return Machine(persistent).run(_record(file, archive, program)())[0]


def _locate(file: MappedFile, info: zipfile.ZipInfo) -> tuple[int, int]:
    """The position of a stored record's bytes; raises PickleError if it is not inside the file."""
    header = file.map[max(info.header_offset, 0) : info.header_offset + 30]
    if len(header) < 30 or header[:4] != ZIP_START:
        raise PickleError(f"record {info.filename} has no header; the file is damaged or cut off")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = info.header_offset + 30 + name_length + extra_length
    if start + info.compress_size > file.size:
        raise PickleError(f"record {info.filename} reaches beyond the end; the file is damaged or cut off")
    return start, info.compress_size


def _record(file: MappedFile, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], bytes]:
    """A reader of one record; compressed ones only up to a bounded expansion."""
    if info.flag_bits & 1:
        raise PickleError(f"record {info.filename} is encrypted; it cannot be read here")
    start, size = _locate(file, info)
    if info.compress_type == zipfile.ZIP_STORED:
        if info.file_size != size:
            raise PickleError(f"record {info.filename} has two sizes, {size} and {info.file_size}; the file is damaged")
        return lambda: bytes(file.map[start : start + size])
    if info.file_size > max(SMALL, MAX_EXPANSION * size):
        raise PickleError(f"record {info.filename} claims to unpack {size} bytes into {info.file_size}; refusing to")

    def unpack() -> bytes:
        try:
            with archive.open(info) as stream:
                data = stream.read(info.file_size)
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
            raise PickleError(f"record {info.filename} cannot be unpacked ({error}); the file is damaged") from None
        if len(data) != info.file_size:
            raise PickleError(
                f"record {info.filename} unpacks to {len(data)} bytes, not {info.file_size}; the file is damaged"
            )
        return data

    return unpack


def _tensor_fetcher(file: MappedFile, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], Tensor]:
    read = _record(file, archive, info)
    if info.compress_type == zipfile.ZIP_STORED:
        start, size = _locate(file, info)
        return lambda: file.region(start, size)
    return lambda: torch.frombuffer(bytearray(read()), dtype=torch.uint8)


# -- stream of pickles ------------------------------------------------------------------------------------------------


def _read_stream(file: MappedFile) -> Any:
    kinds: dict[str, tuple[torch.dtype, int]] = {}
    placed: dict[str, int] = {}
    roots: dict[str, Storage] = {}

    def fetch(key: str, first: int, nbytes: int) -> Callable[[], Tensor]:
        return lambda: file.region(placed[key] + first, nbytes)

    def persistent(value: Any) -> Any:
        if isinstance(value, tuple) and value and value[0] == "module":
            return value[1] if len(value) > 1 else None  # the source of a pickled module: the class remains a name
        dtype, key, elements, part = _storage_id(value)
        if elements * dtype.itemsize > file.size:
            raise PickleError(
                f"storage {key} declares {elements} elements, more than the file contains; it is damaged or cut off"
            )
        if kinds.setdefault(key, (dtype, elements)) != (dtype, elements):
            raise PickleError(f"storage {key} is declared in two ways; the file is damaged")
        if key not in roots:
            roots[key] = Storage(key, dtype, elements * dtype.itemsize, fetch(key, 0, elements * dtype.itemsize))
        if part is None:
            return roots[key]
        return _part_of(roots[key], part, dtype, fetch)

    machine = Machine(persistent)
    try:
        magic, end = Machine(persistent).run(file.map)
    except PickleError:
        raise UserError(
            f"{file.path} is not a checkpoint: neither a zip archive, nor a tar archive, nor a pickle"
        ) from None
    if magic != STREAM_MAGIC:
        raise UserError(f"{file.path} is a pickle but not a checkpoint: torch.save's magic number is missing")
    protocol, end = Machine(persistent).run(file.map, end)
    if protocol != STREAM_PROTOCOL:
        raise PickleError(f"unknown protocol {short(protocol)}; only {STREAM_PROTOCOL} was ever written")
    system, end = Machine(persistent).run(file.map, end)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise UserError(f"{file.path} was written on a big-endian machine; convert it there")
    value, end = machine.run(file.map, end)
    keys, end = Machine(persistent).run(file.map, end)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise PickleError("the list of storages is damaged")
    for key in keys:
        if key not in kinds:
            raise PickleError(f"storage {key} is stored but nowhere described; the file is damaged")
        dtype, elements = kinds[key]
        placed[key] = end + 8
        declared = struct.unpack("<q", file.map[end : end + 8])[0] if end + 8 <= file.size else -1
        end += 8 + elements * dtype.itemsize
        if declared != elements or end > file.size:
            raise PickleError(f"storage {key} should contain {elements} elements; the file is damaged or cut off")
    absent = sorted(set(kinds) - set(placed))
    if absent:
        raise PickleError(f"storage {absent[0]} is named but not in the file; it is damaged or cut off")
    return value


def _part_of(
    root: Storage, part: Any, dtype: torch.dtype, fetch: Callable[[str, int, int], Callable[[], Tensor]]
) -> Storage:
    """A storage that is a piece (key, offset, elements) of another."""
    if not isinstance(part, tuple) or len(part) != 3 or any(type(n) is not int or n < 0 for n in part[1:]):
        raise PickleError(f"a piece of storage {root.key} is damaged")
    first, nbytes = part[1] * dtype.itemsize, part[2] * dtype.itemsize
    if first + nbytes > root.nbytes:
        raise PickleError(f"a piece of storage {root.key} reaches beyond it; the file is damaged")
    return Storage(root.key, dtype, nbytes, fetch(root.key, first, nbytes))


# -- tar --------------------------------------------------------------------------------------------------------------


def _read_tar(file: MappedFile) -> Any:
    members = _tar_members(file)
    missing = {"storages", "tensors", "pickle"} - set(members)
    if missing:
        raise UserError(
            f"{file.path} is a tar archive without {sorted(missing)[0]}; it is not a checkpoint of torch.save"
        )
    storages = _tar_storages(file, *members["storages"])
    tensors = _tar_tensors(file, storages, *members["tensors"])

    def persistent(value: Any) -> Any:
        if isinstance(value, tuple):
            return value[1] if len(value) > 1 else None
        key = str(value) if isinstance(value, int | str) else ""
        if key in tensors:
            return tensors[key]
        if key in storages:
            return storages[key]
        raise PickleError(f"tensor {key} is named but not in the archive; the file is damaged")

    start, size = members["pickle"]
    return Machine(persistent).run(file.map[start : start + min(size, MAX_PICKLE)])[0]


def _tar_members(file: MappedFile) -> dict[str, tuple[int, int]]:
    """name -> (start, size) of the regular files. The headers are traversed here: each must point forwards, within the
    file."""
    members: dict[str, tuple[int, int]] = {}
    at = 0
    for _ in range(MAX_MEMBERS):
        block = bytes(file.map[at : at + tarfile.BLOCKSIZE])
        if len(block) < tarfile.BLOCKSIZE or not any(block):
            return members
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError) as error:
            raise UserError(f"{file.path} is a damaged tar archive ({error}); fetch it again") from None
        start = at + tarfile.BLOCKSIZE
        if info.size < 0 or start + info.size > file.size:
            raise PickleError(f"{short(info.name)} reaches beyond the end; the file is damaged or cut off")
        if info.isreg():
            members[info.name.removeprefix("./")] = start, info.size
        at = start + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    raise UserError(f"{file.path} is a tar archive of more than {MAX_MEMBERS} members; torch.save wrote four")


def _refuse(value: Any) -> Any:
    raise PickleError("the table of storages refers to something outside it; the file is damaged")


def _table_rows(file: MappedFile, start: int, stop: int) -> tuple[int, int]:
    """The row count at the head of a table, bounded by the number of its bytes."""
    count, at = Machine(_refuse).run(_Head(file, stop), start)
    if type(count) is not int or not 0 <= count <= stop - start:
        raise PickleError("the archive's tables are damaged")
    return count, at


class _Head:
    """The first `stop` bytes of a mapping: a program cannot continue into the archive's next member."""

    def __init__(self, file: MappedFile, stop: int) -> None:
        self.file, self.stop = file, stop

    def __len__(self) -> int:
        return self.stop

    def __getitem__(self, part: slice) -> bytes:
        return self.file.map[part]

    def find(self, what: bytes, start: int, stop: int) -> int:
        return self.file.map.find(what, start, min(stop, self.stop))


def _is_row(row: Any, length: int, keys: int) -> bool:
    """A tuple of `length` fields of which the first `keys` are plain identifiers."""
    return isinstance(row, tuple) and len(row) == length and all(isinstance(key, int | str) for key in row[:keys])


def _bytes_of(whole: StoredTensor) -> Tensor:
    return whole.load().view(torch.uint8)


def _tar_storages(file: MappedFile, start: int, size: int) -> dict[str, Storage]:
    stop = start + size
    count, at = _table_rows(file, start, stop)
    storages: dict[str, Storage] = {}
    for _ in range(count):
        row, at = Machine(_refuse).run(_Head(file, stop), at)
        if not _is_row(row, 3, 1) or at + 8 > stop:
            raise PickleError("the archive's table of storages is damaged or cut off")
        key, dtype = str(row[0]), storage_dtype(row[2])
        (elements,) = struct.unpack("<q", file.map[at : at + 8])
        first, nbytes = at + 8, elements * dtype.itemsize
        at = first + nbytes
        if elements < 0 or at > stop:
            raise PickleError(
                f"storage {key} declares {elements} elements, more than the archive contains; it is damaged or cut off"
            )
        storages[key] = Storage(key, dtype, nbytes, partial(file.region, first, nbytes))
    views, _ = Machine(_refuse).run(_Head(file, stop), at)
    if not isinstance(views, list):
        raise PickleError("the archive's table of storage views is damaged")
    for row in views:
        if not _is_row(row, 4, 2) or str(row[1]) not in storages:
            raise PickleError("the archive's table of storage views is damaged")
        root = storages[str(row[1])]
        whole = view(root, root.dtype, row[2], (row[3],), (1,))
        storages[str(row[0])] = Storage(str(row[0]), root.dtype, whole.nbytes, partial(_bytes_of, whole))
    return storages


def _tar_tensors(file: MappedFile, storages: dict[str, Storage], start: int, size: int) -> dict[str, StoredTensor]:
    stop = start + size
    count, at = _table_rows(file, start, stop)
    tensors: dict[str, StoredTensor] = {}
    for _ in range(count):
        row, at = Machine(_refuse).run(_Head(file, stop), at)
        if not _is_row(row, 3, 2) or str(row[1]) not in storages or at + 8 > stop:
            raise PickleError("the archive's table of tensors is damaged or cut off")
        (dims,) = struct.unpack("<i", file.map[at : at + 4])
        end = at + 8 + 16 * dims + 8
        if dims < 0 or end > stop:
            raise PickleError("the archive's table of tensors is damaged or cut off")
        numbers = struct.unpack(f"<{2 * dims + 1}q", file.map[at + 8 : end])
        storage = storages[str(row[1])]
        tensors[str(row[0])] = view(storage, storage.dtype, numbers[-1], numbers[:dims], numbers[dims:-1])
        at = end
    return tensors


__all__ = ["PickleError", "StoredTensor", "Stub", "read_pickle"]
