"""Options that several commands share, and what their values mean."""

import math
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

    from sfumato.model import LatentDiffusion

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, or the folder of a run.")]
SizeOption = Annotated[
    str | None,
    typer.Option("--size", metavar="HxW", help="Height x width in pixels, such as 64x96, or one number for a square."),
]
BatchOption = Annotated[int, typer.Option("--batch", help="Pictures computed at once.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto (a GPU where there is one), cpu, cuda, cuda:1, ...")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="auto (bfloat16 where fast), float32 or bfloat16.")]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(H, W) of "64x96", or of "64" for a square."""
    from sfumato.errors import UserError

    if text is None:
        return None
    found = re.fullmatch(r"(\d+)(?:[x×](\d+))?", text.strip().lower())
    if found is None or 0 in (sides := [int(side) for side in found.groups() if side]):
        raise UserError(f"--size {text!r} is not a size: give height x width such as 64x96, or one number for a square")
    return sides[0], sides[-1]


def chosen_device(name: str) -> "torch.device":
    """The device of a name, which must be there."""
    import torch

    from sfumato.errors import UserError

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError):
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise UserError(f"--device {name!r} is not available here: choose auto or {' or '.join(there)}") from None
    if device.type == "meta":
        raise UserError("--device 'meta' computes nothing: choose auto or cpu")
    return device


def chosen_autocast(device: "torch.device", precision: str) -> "torch.autocast":
    """The precision in which networks compute."""
    from sfumato.engine.precision import autocast
    from sfumato.errors import UserError

    if precision not in ("auto", "float32", "bfloat16"):
        raise UserError(f"--precision {precision!r} is not one of auto, float32, bfloat16")
    return autocast(device, precision)  # type: ignore[arg-type]  # one of the three


def made_fast(model: "LatentDiffusion", computing: "torch.autocast") -> "AbstractContextManager[object]":
    """Packs a model where its device has a packed form; returns what its calls are to be made within."""
    import torch

    if model.device.type not in ("cpu", "cuda"):
        return computing
    model.for_inference(torch.bfloat16 if computing._enabled else torch.float32)
    return nullcontext()


def at_least(name: str, value: int, least: int) -> int:
    """The value, or a UserError where it is too small."""
    from sfumato.errors import UserError

    if value < least:
        raise UserError(f"{name} is {value}: give at least {least}")
    return value


def out_folder(path: Path) -> Path:
    """The folder, if it can be written to; it is made by whatever is first written into it.

    What commands that were killed left there is removed.
    """
    from sfumato.checkpoint import remove_leftovers
    from sfumato.outputs import check_folder

    check_folder(path)
    remove_leftovers(path, alone=False)
    return path


@contextmanager
def new_model_folder(path: Path) -> Iterator[None]:
    """Within the block this process alone writes a second stage's model at the path.

    Raises UserError where something else is there, or it cannot be written to.
    """
    from sfumato.errors import UserError
    from sfumato.outputs import written

    with written(path):
        if path.exists() and any(path.iterdir()) and not (path / "denoiser.safetensors").exists():
            raise UserError(f"--out {str(path)!r} is in use and no model folder: give a new folder")
        yield


@contextmanager
def enough_memory(batch: int, advice: str | None = None) -> Iterator[None]:
    """Turns a lack of memory into the advice to give a smaller batch, or another where there are no batches."""
    import torch

    from sfumato.errors import UserError

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        short = True
    except RuntimeError as error:
        short = "can't allocate memory" in str(error)
        if not short:
            raise
    else:
        return
    smaller = f"a smaller --batch than {batch}" if batch > 1 else "a smaller --size or --device cpu"
    raise UserError(f"there is not enough memory for this: give {advice or smaller}")


def columns_of(n: int) -> int:
    """The columns of a sheet of n pictures: nearly square, rather wide."""
    return max(1, math.ceil(math.sqrt(n)))
