"""The meaning of option values that several commands share."""

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import torch

    from sfumato.model import LatentDiffusion


def chosen_device(name: str) -> "torch.device":
    """The device of a name, which must be there."""
    import torch

    from sfumato.errors import UserError

    if name == "auto":
        local = int(os.environ.get("LOCAL_RANK", "0"))  # one of several processes has a GPU of its own
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", local % torch.cuda.device_count()) if local else torch.device("cuda")
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


@contextmanager
def notes() -> Iterator[None]:
    """Prints what a user should know of the requests within, each sentence once."""
    import warnings

    from sfumato.pipeline.plan import NoteWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NoteWarning)
        yield
    for sentence in dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, NoteWarning)):
        typer.echo(f"warning: {sentence}", err=True)
    for one in caught:
        if not issubclass(one.category, NoteWarning):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def columns_of(n: int) -> int:
    """The columns of a sheet of n images: nearly square, rather wide."""
    return max(1, math.ceil(math.sqrt(n)))


@contextmanager
def refused(path: Path, what: str) -> "Iterator[None]":
    """Turns a file that is no readable image into UserError."""
    from sfumato.data.dataset import UnreadableImage
    from sfumato.errors import UserError

    if path.is_dir():
        raise UserError(f"{what} {str(path)!r} is a folder: give one of its files")
    try:
        yield
    except UnreadableImage as error:
        raise UserError(f"{what} {str(path)!r} cannot be read: {error.reason}") from None
