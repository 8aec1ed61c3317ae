"""A checkpoint file of any kind as named tensors: pickles of torch.save and safetensors, neither of them executed."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sfumato.errors import UserError
from sfumato.foreign import reading, short
from sfumato.interop.lazy import StoredTensor, is_shape
from sfumato.interop.pickle_machine import DTYPES, Global, Stub
from sfumato.interop.pickles import PICKLE_START, ZIP_START, check_checkpoint_file, read_pickle
from sfumato.interop.prefixes import UNNAMED, has_unnamed_averages, named, unnested
from sfumato.interop.recognise import HEAD, no_model_of_ours, unlike_a_checkpoint

MAX_REPEATED = 4  # bound of the size of all tensors together, as a multiple of the file's size

LEFT_OUT = f"the averaged weights are a list without names ({UNNAMED}) and are left out: the live ones are read"

SAFETENSORS_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": DTYPES["float8_e4m3fn"],
    "F8_E5M2": DTYPES["float8_e5m2"],
}


@dataclass(frozen=True, eq=False)
class SafeTensor:
    """One tensor of a safetensors file, read on demand."""

    handle: Any
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    def load(self) -> Tensor:
        return self.handle.get_tensor(self.key)


@dataclass(frozen=True, eq=False)
class Source:
    """The contents of a file. `extras` are the plain values besides the weights (epoch, ...), `stubs` the
    classes that it names, left inert, `others` the entries of the state dict that are not tensors."""

    path: Path
    tensors: dict[str, StoredTensor | SafeTensor]
    extras: dict[str, int | float | str | bool]
    stubs: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    metadata: dict[str, str] | None = None
    notes: tuple[str, ...] = ()
    """Notes on what was removed from the keys, and on which of several sets of weights they are."""
    averaged: bool = False
    """Whether the file has averaged weights only."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every key with its shape, without reading a value."""
        return {key: tensor.shape for key, tensor in self.tensors.items()}


def open_checkpoint(path: Path | str, rename: bool = True) -> Source:
    """Opens .ckpt, .pt, .pth, .bin (pickles, read without being run) or .safetensors by content, not by name.

    `rename` maps its tensors to the original's names (see `prefixes`).
    Raises UserError if it is neither, is damaged or truncated, or contains no tensors.
    """
    path = Path(path)
    check_checkpoint_file(path)
    with path.open("rb") as file:
        start = file.read(HEAD)
    unlike = unlike_a_checkpoint(start, path.stat().st_size)
    if unlike is not None:
        raise UserError(f"{path} is {unlike}")
    with reading(path):
        source = _open(path, start[:9])
        return renamed(source) if rename else source


def renamed(source: Source) -> Source:
    """The same tensors under the original's names."""
    try:
        found = named(source.tensors)
    except UserError as error:
        raise UserError(f"{source.path} {error}") from None
    return replace(source, tensors=found.values, notes=(*source.notes, *found.notes), averaged=found.averaged)


def _open(path: Path, start: bytes) -> Source:
    listed = len(start) == 9 and start[8:9] == b"{" and start[4:8] == b"\0" * 4
    if listed or (path.suffix == ".safetensors" and not start.startswith((ZIP_START, PICKLE_START))):
        return _open_safetensors(path)
    return _from_object(path, read_pickle(path))


def _open_safetensors(path: Path) -> Source:
    try:
        handle = safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}); fetch it again") from None
    tensors: dict[str, StoredTensor | SafeTensor] = {}
    for key in handle.keys():  # noqa: SIM118  (the handle is not a mapping)
        part = handle.get_slice(key)
        kind = part.get_dtype()
        if kind not in SAFETENSORS_TYPES:
            raise UserError(f"{path}: tensor {key} has the element type {kind}, which cannot be read here")
        shape = tuple(part.get_shape())
        if not is_shape(shape):
            raise UserError(f"{path}: tensor {short(key)} has the shape {short(shape)}, which is none; is it damaged?")
        tensors[key] = SafeTensor(handle, key, SAFETENSORS_TYPES[kind], shape)
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    return Source(path, tensors, {}, metadata=dict(handle.metadata() or {}))


def _from_object(path: Path, value: Any) -> Source:
    stubs = _stub_names(value)
    extras: dict[str, int | float | str | bool] = {}
    state = value
    if isinstance(value, dict):
        extras = {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, int | float | str | bool)}
        state = unnested(value, lambda item: isinstance(item, StoredTensor))
    if isinstance(state, Stub):
        named = stubs[0] if stubs else "a class"
        raise UserError(f"{path} is a pickled object ({named}), not named tensors; save its state_dict() instead")
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, not a dictionary of named tensors")
    tensors = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, StoredTensor)}
    others = tuple(sorted(str(k) for k, v in state.items() if isinstance(k, str) and not isinstance(v, StoredTensor)))
    unnamed = isinstance(value, dict) and has_unnamed_averages(value)
    if not tensors and unnamed:
        raise UserError(
            f"{path} has averaged weights as a list without names ({UNNAMED}), which cannot be assigned to layers: in "
            "the program that wrote it, copy them into the model (copy_to) and save its state_dict()"
        )
    if not tensors:
        what = no_model_of_ours({}, others)
        raise UserError(f"{path} {f'is {what}' if what else 'contains no named tensors; it is not a model checkpoint'}")
    total, size = sum(tensor.nbytes for tensor in tensors.values()), path.stat().st_size
    if total > MAX_REPEATED * size + (1 << 30) // 8:
        raise UserError(f"{path} of {size} bytes claims tensors of {total} bytes; refusing to unpack it")
    return Source(
        path, dict(tensors), extras, stubs, others if state is not value else (), notes=(LEFT_OUT,) if unnamed else ()
    )


def _stub_names(value: Any) -> tuple[str, ...]:
    """Names of all classes that were left inert, found without recursion and visiting each object once."""
    names: set[str] = set()
    seen: set[int] = set()
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, Global):
            names.add(item.path)
        elif isinstance(item, dict | list | tuple | Stub):
            if id(item) in seen:
                continue
            seen.add(id(item))
            if isinstance(item, dict):
                todo += item.keys()
                todo += item.values()
            elif isinstance(item, Stub):
                todo += [item.cls, item.args, *item.state, *item.items]
            else:
                todo += item
    return tuple(sorted(names))
