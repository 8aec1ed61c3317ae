"""Files that are whole or absent: written to a temporary name, synced, renamed. Tensors as safetensors."""

import contextlib
import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfumato.errors import UserError
from sfumato.plain_json import to_json

_TORCH_SAVE_FAILED = ("PytorchStreamWriter", "unexpected pos", "enforce fail at inline_container", "cannot be opened")
"""How torch.save, which writes by itself, tells of a full or read-only disk: a RuntimeError without a number."""

_STEP = re.compile(r"step-(\d+)\.safetensors$")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is synced and renamed over it, on failure removed.

    Raises UserError where the disk is full or not writable; what stood at `path` before is untouched then.
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


def save_tensors(path: Path, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any] | None = None) -> None:
    """Saves named tensors, and JSON-able numbers in the file's header, atomically."""
    flat = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    seen: dict[int, str] = {}
    for name, t in flat.items():  # safetensors refuses tensors that share memory: the later name gets a copy
        if t.numel() and t.data_ptr() in seen:
            flat[name] = t.clone()
        seen[t.data_ptr()] = name
    with replacing(path) as temporary:
        save_file(flat, temporary, metadata={"numbers": to_json(dict(numbers or {}))})


def load_tensors(path: Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and numbers of a file written by `save_tensors`. Raises UserError on a missing or damaged file."""
    try:
        with safe_open(path, framework="pt", device=device) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise UserError(f"{str(path)!r} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{str(path)!r} is not a readable safetensors file ({error}); was the download complete?"
        ) from None
    return tensors, json.loads(metadata.get("numbers", "{}"))


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises UserError naming the first tensor that holds NaN or infinity, how many numbers, and how many such tensors.

    One pass over each tensor, without a copy: a sum is finite only where every number in it is. Only a tensor whose
    sum is not (large numbers can overflow it) is looked at number by number. Integers and meta tensors pass.

    Args:
        tensors: by name, of any shape and type, also memory-mapped.
        where: what they are, for the message, such as the file.
    """
    damaged = [(name, tensor) for name, tensor in tensors.items() if not _is_finite(tensor)]
    if not damaged:
        return
    name, tensor = damaged[0]
    count = int((~torch.isfinite(_widened(tensor))).sum())
    others = f", and {len(damaged) - 1} more tensors hold such numbers too" if len(damaged) > 1 else ""
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
    """float32 of the eight-bit types, which have no arithmetic; others as they are."""
    return tensor.detach().float() if tensor.element_size() == 1 else tensor.detach()


def load_into(module: torch.nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Loads tensors by name: every weight of a model folder passes here.

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
    unknown = sorted(set(tensors) - set(own))
    if unknown:
        raise UserError(
            f"{where} has {len(unknown)} keys this configuration does not know, the first is {unknown[0]!r}"
        )
    check_finite(tensors, where)
    module.load_state_dict(dict(tensors), assign=any(t.is_meta for t in own.values()))


def step_path(folder: Path, step: int) -> Path:
    """Where the state after `step` steps is kept."""
    return folder / f"step-{step:08d}.safetensors"


def saved_steps(folder: Path) -> list[tuple[int, Path]]:
    """The saved states in a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(m.group(1)), p) for p in folder.iterdir() if (m := _STEP.match(p.name))]
    return sorted(found)


def newest(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest state whose file is whole; damaged newer ones are reported through `warn` and passed over."""
    for _, path in reversed(saved_steps(folder)):
        try:
            with safe_open(path, framework="pt"):
                return path
        except (SafetensorError, OSError) as error:
            warn(f"checkpoint {path.name} is damaged ({error}); going back to the one before")
    return None


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` states, and what an interrupted save left behind."""
    for _, path in saved_steps(folder)[:-keep]:
        path.unlink(missing_ok=True)
    for leftover in folder.glob(".step-*.part"):
        leftover.unlink(missing_ok=True)
