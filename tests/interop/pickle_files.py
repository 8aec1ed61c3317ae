"""Checkpoints as torch.save wrote them, whole and changed by hand."""

import collections
import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from sfumato.interop.pickle_machine import Global


def save(value: Any, path: Path, legacy: bool) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def write_tar(path: Path, base: torch.Tensor, elements: int | None = None, offset: int = 0) -> None:
    """A tar checkpoint as torch 0.1.9 wrote it: {"w": a transposed view, "piece": a storage view's tensor}."""

    def dump(value: Any) -> bytes:
        return pickle.dumps(value, protocol=2)

    storages = dump(1) + dump((10, "cpu", torch.FloatStorage)) + struct.pack("<q", elements or base.numel())
    storages += base.numpy().tobytes() + dump([(11, 10, 2, 3)])
    tensors = dump(2)
    tensors += dump((20, 10, torch.FloatTensor)) + struct.pack("<ii2q2qq", 2, 0, 3, 2, 1, 3, offset)
    tensors += dump((21, 11, torch.FloatTensor)) + struct.pack("<iiqqq", 1, 0, 3, 1, 0)

    class Ref:
        def __init__(self, key: str) -> None:
            self.key = key

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return obj.key if isinstance(obj, Ref) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"w": Ref("20"), "piece": Ref("21")})
    system = dump({"protocol_version": 1000, "little_endian": True, "type_sizes": {}})
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (
            ("sys_info", system),
            ("pickle", buffer.getvalue()),
            ("tensors", tensors),
            ("storages", storages),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_sparse(path: Path, elements: int) -> None:
    """A zip checkpoint whose one storage is a hole in the file (no disk, no memory)."""
    program = program_of(("storage", Global("torch", "FloatStorage"), "0", "cpu", elements), shape=(elements,))
    nbytes = 4 * elements
    with path.open("wb") as file:
        entries = []
        for name, data, size in (("x/data.pkl", program, len(program)), ("x/data/0", b"", nbytes)):
            entries.append((name.encode(), file.tell(), size))
            file.write(
                struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, 0, size, size, len(name), 0) + name.encode()
            )
            file.write(data)
            if not data:
                file.seek(size, os.SEEK_CUR)
        start = file.tell()
        for name_bytes, at, size in entries:
            head = struct.pack(
                "<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, size, size, len(name_bytes), 0, 0, 0, 0, 0, at
            )
            file.write(head + name_bytes)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, file.tell() - start, start, 0))


def repack(source: Path, target: Path, compression: int = zipfile.ZIP_STORED, **changed: bytes | None) -> Path:
    """Copies a zip checkpoint with some records (data_pkl, data__0, ...) replaced or, for None, left out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for info in old.infolist():
            name = info.filename.split("/", 1)[1].replace("/", "__").replace(".", "_")
            data = changed[name] if name in changed else old.read(info)
            if data is not None:
                new.writestr(info.filename, data)
    return target


def program_of(identifier: Any, offset: Any = 0, shape: Any = (4,), stride: Any = None) -> bytes:
    """The pickle of {"w": one tensor of the storage named by `identifier`}, whatever its numbers claim."""

    class Ref:
        pass

    class Rebuild:
        def __reduce__(self) -> tuple[Any, ...]:
            strides = tuple([1] * len(shape)) if stride is None else stride
            return torch._utils._rebuild_tensor_v2, (Ref(), offset, shape, strides, False, collections.OrderedDict())

    class Pickler(pickle._Pickler):  # type: ignore[name-defined]
        def persistent_id(self, obj: Any) -> Any:
            return identifier if isinstance(obj, Ref) else None

        def save(self, obj: Any, save_persistent_id: bool = True) -> None:
            if isinstance(obj, Global):
                self.write(f"c{obj.module}\n{obj.name}\n".encode())
            else:
                super().save(obj, save_persistent_id)

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"w": Rebuild()})
    return buffer.getvalue()
