"""Atomic files: written to a temporary name, synced, renamed. Tensors as safetensors."""

import contextlib
import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfumato import state_parts
from sfumato.errors import UserError
from sfumato.foreign import check_regular
from sfumato.plain_json import to_json
from sfumato.stored_precision import Bits, check_bits, expanded, reduced

_TORCH_SAVE_FAILED = ("PytorchStreamWriter", "unexpected pos", "enforce fail at inline_container", "cannot be opened")
"""Parts of torch.save's messages for a full or read-only disk: a RuntimeError without an error number."""

RUN_MARK = "states"
"""A sub-folder of every run, and of no model."""
RUN_LOG = "log.jsonl"
RUN_PARTS = (RUN_MARK, "previews", "model", "snapshots", "best")
"""The folders that a training writes beside its configuration and its log."""
CHECKSUM = "checksum"
"""The name of a file's checksum among the numbers in its header."""
STORED_BITS = "stored_bits"
"""In the header of weights that are stored in fewer bits: 8 or 16."""
NUMBERS = "numbers"
_STEP = re.compile(r"step-(\d+)(?:\.safetensors)?$")
"""A state: a file, or a folder of parts that several processes wrote (`state_parts`)."""
_PART = re.compile(r"\..+\.(\d+)\.part$")
_DRAFT = re.compile(r"\.step-\d+\.part$")
"""Temporary name of a state in parts."""
_SAFETENSORS_PART = re.compile(r"\.tmp[A-Za-z0-9]{6}$")
"""Temporary names of safetensors."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is synced and renamed over it, on failure removed.

    Raises UserError if the disk is full or not writable; an existing file at `path` is unchanged then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise UserError(_cannot_write(path, error)) from error
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _TORCH_SAVE_FAILED):
            raise
        raise UserError(_cannot_write(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _cannot_write(path: Path, error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == errno.ENOSPC or "No space left" in str(error) or "os error 28" in str(error):
        return f"the disk is full: {str(path)!r} could not be written; free some space and run the same command again"
    if isinstance(error, RuntimeError):
        return f"{str(path)!r} could not be written; is the disk full or read-only? ({str(error).splitlines()[0]})"
    return f"{str(path)!r} could not be written: {error}"


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_first_free(paths: Iterable[Path], write: Callable[[Path], object]) -> Path:
    """Writes a file atomically under the first free one of `paths`, and returns that path.

    Several processes that request the same name at once get different ones, and no file is replaced. The paths are
    in one folder. Raises UserError as `replacing` does.
    """
    names = iter(paths)
    path = next(names)
    missing = [folder for folder in path.parents if not folder.exists()]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        while not _placed(temporary, path):
            path = next(names)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
            for folder in missing:
                folder.rmdir()
        raise UserError(_cannot_write(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def _placed(temporary: Path, path: Path) -> bool:
    """Gives a finished file its name unless the name is taken: by a link, which never replaces."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links: an empty file reserves the name
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            return False
        os.replace(temporary, path)
    return True


def remove_leftovers(folder: Path, alone: bool = True) -> None:
    """Removes leftovers of interrupted writes from a folder; other files stay.

    alone: no other process writes here, which the holder of the folder's lock knows; else only leftovers of dead
    processes are removed.
    """
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if alone and _DRAFT.match(path.name):
            shutil.rmtree(path, ignore_errors=True)
            continue
        part = _PART.match(path.name)
        dead = part is not None and (alone or not _lives(int(part.group(1))))
        if dead or (alone and _SAFETENSORS_PART.match(path.name)):
            with contextlib.suppress(OSError):
                path.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Any] | None = None,
    entries: Mapping[str, str] | None = None,
    bits: Bits | None = None,
) -> None:
    """Saves named tensors, and JSON-able numbers and a checksum of both in the file's header, atomically.

    `entries` are further entries of the header, for other programs. With `bits` the tensors are weights that are stored
    in this many bits (`stored_precision`), which `load_tensors` expands to float32. Raises UserError for weights that
    are not finite.
    """
    values = dict(numbers or {})
    if bits is not None:
        check_finite(tensors, str(path))
        tensors = reduced(tensors, bits)
        values[STORED_BITS] = bits
    flat = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    seen: dict[int, str] = {}
    for name, t in flat.items():  # safetensors refuses tensors that share memory: the later name gets a copy
        if t.numel() and t.data_ptr() in seen:
            flat[name] = t.clone()
        seen[t.data_ptr()] = name
    # one entry of the header: the order of several differs from file to file
    text = to_json({**values, CHECKSUM: checksum(flat, values)})
    with replacing(path) as temporary:
        save_file(flat, temporary, metadata={**(entries or {}), NUMBERS: text})


def checksum(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> str:
    """CRC-32 of the bytes of CPU tensors with their names, types and shapes, and of `numbers`; eight hex digits.

    It detects damage, not manipulation; two GiB take about a second.
    """
    value = zlib.crc32(json.dumps(dict(numbers)).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        if tensor.numel():
            content: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            value = zlib.crc32(content, value)
    return f"{value:08x}"


def stored_checksum(path: Path) -> str | None:
    """The checksum in the header of a file; None if it has none. Raises UserError as `load_tensors` does."""
    return _header(path)[1]


def stored_bits(path: Path) -> Bits | None:
    """The bits that `save_tensors` was given for a file; None for weights that are stored as they are.

    Raises UserError as `load_tensors` does.
    """
    bits: Bits | None = _header(path)[0].get(STORED_BITS)
    return bits


def _header(path: Path) -> tuple[dict[str, Any], str | None]:
    """The numbers in the header of a file, and the checksum among them."""
    try:
        with safe_open(path, framework="pt") as file:
            return _numbers(path, file.metadata())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{str(path)!r} is not a readable safetensors file ({error})") from None


def _numbers(path: Path, metadata: Mapping[str, str] | None) -> tuple[dict[str, Any], str | None]:
    """The numbers in a header, and the checksum among them. Raises UserError if they are invalid."""
    try:
        numbers = json.loads((metadata or {}).get(NUMBERS, "{}"))
    except (ValueError, RecursionError):
        numbers = None
    if not isinstance(numbers, dict):
        raise UserError(f"{str(path)!r} is damaged: the numbers in its header are not a JSON object")
    stored = numbers.pop(CHECKSUM, None)
    if not isinstance(stored, str | None):
        raise UserError(f"{str(path)!r} is damaged: the checksum in its header is not a text")
    if STORED_BITS in numbers:
        check_bits(numbers[STORED_BITS], repr(str(path)))
    return numbers, stored


def load_tensors(path: Path, device: str = "cpu", verify: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and numbers of a file written by `save_tensors`; weights in fewer bits are expanded to float32.

    CPU tensors are read from the file at their first use, and keep it open. `verify` compares all with the checksum,
    if the file has one (older ones do not). Raises UserError on a missing or damaged file.
    """
    check_regular(path)
    try:
        with safe_open(path, framework="pt", device=device) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = file.metadata()
    except FileNotFoundError:
        raise UserError(f"{str(path)!r} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{str(path)!r} is not a readable safetensors file ({error}); was the download complete?"
        ) from None
    numbers, stored = _numbers(path, metadata)
    if verify and stored is not None and checksum(tensors, numbers) != stored:
        raise UserError(f"{str(path)!r} is damaged: its content does not have the checksum {stored}")
    if numbers.pop(STORED_BITS, None) is not None:
        tensors = expanded(tensors, repr(str(path)))
    return tensors, numbers


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises UserError with the first tensor that contains NaN or infinity, how many, and the number of such tensors.

    One pass over each tensor, without a copy: a sum is finite only if every number in it is. Only a tensor whose sum
    is not (large numbers can overflow it) is checked number by number. Integers and meta tensors pass.

    Args:
        tensors: by name, of any shape and type, also memory-mapped.
        where: what they are, for the message, such as the file.
    """
    damaged = [(name, tensor) for name, tensor in tensors.items() if not _is_finite(tensor)]
    if not damaged:
        return
    name, tensor = damaged[0]
    count = int((~torch.isfinite(_widened(tensor))).sum())
    others = f", and {len(damaged) - 1} more tensors contain such numbers" if len(damaged) > 1 else ""
    raise UserError(
        f"{where}: tensor {name!r} holds {count} of {tensor.numel()} numbers that are not finite (NaN or infinity)"
        f"{others}; the training diverged, or the file is damaged: take an earlier checkpoint"
    )


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.is_meta or tensor.numel() == 0:
        return True
    values = _widened(tensor)
    wide = values.sum(dtype=torch.float64 if values.dtype == torch.float64 else torch.float32)
    return bool(torch.isfinite(wide)) or bool(torch.isfinite(values).all())


def _widened(tensor: Tensor) -> Tensor:
    """float32 for the eight-bit types, which have no arithmetic; others unchanged."""
    return tensor.detach().float() if tensor.element_size() == 1 else tensor.detach()


def load_into(module: torch.nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Loads tensors by name; all weights of model folders are loaded here.

    Raises UserError naming the first missing, unknown or misshapen key with both shapes, or the first tensor with
    numbers that are not finite.
    """
    own = module.state_dict()
    for name, tensor in own.items():
        if name not in tensors:
            raise UserError(
                f"{where} lacks the key {name!r} that this configuration needs, of shape {tuple(tensor.shape)}"
            )
        if tensors[name].shape != tensor.shape:
            raise UserError(
                f"{where}: key {name!r} has shape {tuple(tensors[name].shape)}, "
                f"the configuration asks for {tuple(tensor.shape)}"
            )
        kind = tensors[name].dtype
        if tensor.is_floating_point() and not (kind.is_floating_point and kind.itemsize > 1):
            found = str(kind).removeprefix("torch.")
            raise UserError(f"{where}: key {name!r} has {found} numbers, weights are float32, float16 or bfloat16")
    unknown = sorted(set(tensors) - set(own))
    if unknown:
        raise UserError(
            f"{where} has {len(unknown)} keys this configuration does not know, the first is {unknown[0]!r}"
        )
    check_finite(tensors, where)
    module.load_state_dict(dict(tensors), assign=any(t.is_meta for t in own.values()))


def step_path(folder: Path, step: int, in_parts: bool = False) -> Path:
    """The path of the state after `step` steps: a file, or a folder of parts."""
    return folder / f"step-{step:08d}{'' if in_parts else '.safetensors'}"


def saved_steps(folder: Path) -> list[tuple[int, Path]]:
    """The saved states in a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(m.group(1)), p) for p in folder.iterdir() if (m := _STEP.match(p.name))]
    return sorted(found)


def newest(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest state with an intact file, by its checksum; damaged newer ones are reported to `warn`.

    None if there is no state. Raises UserError if there are some, and all are damaged.
    """
    states = saved_steps(folder)
    for _, path in reversed(states):
        reason = _damage(path, warn)
        if reason is None:
            return path
        warn(f"checkpoint {path.name} is damaged ({reason}); going back to the one before")
    if states:
        raise UserError(
            f"every saved state in {str(folder)!r} is damaged (the newest is {states[-1][1].name}): restore one "
            "from a copy, or remove that folder to start the run again"
        )
    return None


def _damage(path: Path, warn: Callable[[str], None]) -> str | None:
    """The damage of a state; None for an intact one."""
    try:
        if path.is_dir():
            state_parts.read_numbers(path)
            return None
        load_tensors(path, verify=True)
        if stored_checksum(path) is None:
            warn(f"checkpoint {path.name} was saved without a checksum: whether it is intact cannot be checked")
    except UserError as error:
        return str(error)
    return None


def prune(folder: Path, keep: int, newest: int | None = None) -> None:
    """Removes all but the newest `keep` states, and leftovers of an interrupted save.

    newest: the step of the newest valid state; later ones, left by a run that was set back, are removed, too.
    """
    saved = saved_steps(folder)
    stale = [path for step, path in saved if newest is not None and step > newest]
    for path in [*stale, *[path for _, path in saved if path not in stale][:-keep]]:
        with contextlib.suppress(OSError):
            if path.is_dir():
                state_parts.discard(path)
            else:
                path.unlink(missing_ok=True)
    remove_leftovers(folder)
