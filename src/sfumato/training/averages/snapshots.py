"""Snapshots of a run: averaged networks of stage 2 along the training, in half precision, and how they are opened.

`RUN/snapshots/step-STEP-width-WIDTH.safetensors` holds the trained parameters of denoiser and conditioner, under the
names `denoiser.…` and `conditioner.…`; all else, configuration and first stage, is in `RUN/model`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.checkpoint import check_finite, load_tensors, save_tensors
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.model_folder import load
from sfumato.stored_precision import halved

FOLDER = "snapshots"
_NAME = re.compile(r"step-(\d+)-width-(\d+\.\d+)\.safetensors$")


@dataclass(frozen=True, order=True)
class Snapshot:
    """The file of the average of one width after `step` steps."""

    step: int
    width: float
    path: Path


def path_of(folder: Path, step: int, width: float) -> Path:
    """The file of a snapshot in a `snapshots` folder."""
    return folder / f"step-{step:08d}-width-{width:.4f}.safetensors"


def found_in(folder: Path) -> list[Snapshot]:
    """The snapshots in a `snapshots` folder, oldest first."""
    if not folder.is_dir():
        return []
    matches = ((path, _NAME.match(path.name)) for path in folder.iterdir())
    return sorted(Snapshot(int(m.group(1)), float(m.group(2)), path) for path, m in matches if m)


def snapshots_of(run: Path | str) -> list[Snapshot]:
    """The snapshots of a run, oldest first. Raises UserError if there are none."""
    found = found_in(Path(run) / FOLDER)
    if not found:
        raise UserError(
            f"{str(run)!r} holds no snapshots: give the folder of a run that was trained with "
            "train.power_averages, such as 'train.power_averages={widths: [0.05, 0.1]}'"
        )
    return found


def save_snapshot(folder: Path, step: int, width: float, tensors: Mapping[str, Tensor], updates: int) -> None:
    """Writes one atomically as float16; a tensor that float16 cannot hold keeps its type.

    `updates` counts the optimiser steps that changed weights: the time axis of the average's profile.
    """
    stored = {name: halved(tensor) for name, tensor in tensors.items()}
    save_tensors(path_of(folder, step, width), stored, {"step": step, "width": width, "updates": updates})


def read_snapshot(snapshot: Snapshot) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Its tensors, and its numbers step, width and updates. Raises UserError for a damaged file or weights."""
    tensors, numbers = load_tensors(snapshot.path)
    check_finite(tensors, str(snapshot.path))
    return tensors, numbers


def load_snapshot(
    run: Path | str, step: int | None = None, width: float | None = None, device: torch.device | str = "cpu"
) -> LatentDiffusion:
    """A model of a run at an earlier step; `sfumato.load` opens the newest.

    Args:
        run: the run's folder, or the file of one snapshot in it.
        step: the snapshot nearest to this step; by default the one nearest to a quarter of the training, a weaker
            version of the model such as autoguidance guides away from.
        width: the average nearest to this width; by default the narrowest.
        device: where the model is loaded to.

    Raises:
        UserError: there are no snapshots, or the run's model does not fit them.

    Example:
        >>> weaker = sfumato.load_snapshot("runs/images")
        >>> weaker.digest == sfumato.load("runs/images").digest
        False
    """
    run = Path(run)
    if run.is_file():
        chosen = next((s for s in found_in(run.parent) if s.path == run), None)
        if chosen is None or run.parent.name != FOLDER:
            raise UserError(f"{str(run)!r} is not a snapshot: those are files step-…-width-….safetensors of a run")
        run = run.parent.parent
    else:
        chosen = nearest(snapshots_of(run), step, width)
    model = load(run, device)
    place_tensors(model, read_snapshot(chosen)[0], str(chosen.path))
    return model


def nearest(found: Sequence[Snapshot], step: int | None, width: float | None) -> Snapshot:
    """The snapshot that step and width select, see `load_snapshot`."""
    target = found[-1].step / 4 if step is None else step
    nearest_width = min((s.width for s in found), key=lambda w: w if width is None else abs(w - width))
    return min((s for s in found if s.width == nearest_width), key=lambda s: (abs(s.step - target), s.step))


@torch.no_grad()
def place_tensors(model: LatentDiffusion, tensors: Mapping[str, Tensor], where: str) -> None:
    """Puts the trained parameters of a snapshot into a model. Raises UserError for keys or shapes that do not fit."""
    parts: dict[str, nn.Module] = model.parts()
    own = {f"{name}.{key}": p for name in ("denoiser", "conditioner") if name in parts
           for key, p in parts[name].named_parameters()}  # fmt: skip
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            raise UserError(f"{where} does not belong to the model of its run: key {name!r} does not fit")
        own[name].copy_(tensor)


def to_keep(newest: int, every: int, most: int) -> set[int]:
    """The steps to keep once `newest` is reached: it, and all multiples of the smallest every · 2^k that are few
    enough.

    A function of the newest step alone, so that an interrupted run keeps the same as an uninterrupted one.
    """
    interval = every
    while newest // interval + 1 > most:
        interval *= 2
    return {newest, *range(interval, newest + 1, interval)}


def prune(folder: Path, every: int, most: int) -> None:
    """Thins out the snapshots of a run, and removes leftovers of interrupted writes."""
    found = found_in(folder)
    kept = to_keep(found[-1].step, every, most) if found else set()
    for snapshot in found:
        if snapshot.step not in kept:
            snapshot.path.unlink(missing_ok=True)
    for leftover in folder.glob(".step-*.part"):
        leftover.unlink(missing_ok=True)


def drop_after(folder: Path, step: int) -> None:
    """Removes the snapshots of steps that a resumed run repeats."""
    for snapshot in found_in(folder):
        if snapshot.step > step:
            snapshot.path.unlink(missing_ok=True)
