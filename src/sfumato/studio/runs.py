"""Runs as the page shows them: read from their folders, so that those of a terminal appear too."""

import contextlib
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sfumato.documents import parse_yaml, read_text
from sfumato.errors import UserError
from sfumato.locks import writer
from sfumato.studio.places import INSIDE_RUNS, Places, is_large

CONFIG, LOG, PREVIEWS = "config.yaml", "log.jsonl", "previews"
MOST_PREVIEWS = 400
TAIL_BYTES = 64_000
MOST_LOG_BYTES = 4_000_000
KINDS = (("coupling", "joint"), ("denoiser", "diffusion"), ("model", "autoencoder"), ("network", "transformer"))
NEAR_THE_END = 0.99
"""A run limited by minutes counts as finished from this share of them."""


def find_runs(places: Places) -> list[Path]:
    """The folders of runs below, newest first."""
    found = []

    def enter(folder: Path, files: list[str], inner: list[str]) -> bool:
        if CONFIG in files and (LOG in files or PREVIEWS in inner):
            found.append(folder)
        return folder.name not in INSIDE_RUNS and not is_large(files, inner)

    for _ in places.folders_in(enter):
        pass
    return sorted(found, key=_changed, reverse=True)


@dataclass(frozen=True)
class Length:
    """The requested length of a run: steps, or minutes of training with the fewest and the most steps."""

    steps: int | None
    minutes: float | None
    limits: tuple[int, int] | None = None


def describe(folder: Path, places: Places) -> dict[str, Any]:
    """A run as JSON: what it is, how far it is, its previews."""
    config = _config(folder / CONFIG, _stamp(folder / CONFIG))
    length = _length(config)
    last, before = _last_lines(folder / LOG)
    pid = writer(folder)
    step = int(last.get("step", 0))
    pace = _pace(before, last)
    return {
        "path": str(folder),
        "name": places.name_of(folder),
        "kind": next((kind for key, kind in KINDS if key in config), "training"),
        "state": _state(pid, length, last),
        "step": step,
        "steps": length.steps,
        "minutes": length.minutes,
        "images": last.get("images"),
        "seconds": last.get("seconds"),
        "images_per_second": pace[1],
        "seconds_left": _left(length, last, pace[0]) if pid is not None else None,
        "previews": previews(folder),
        "changed": _changed(folder),
        "has_model": (folder / "model" / CONFIG).exists(),
    }


def previews(folder: Path) -> list[dict[str, Any]]:
    """The preview images of a run, oldest first: step, kind (samples or reconstruction), path."""
    found = []
    for path in sorted((folder / PREVIEWS).glob("*-*.png")) if (folder / PREVIEWS).is_dir() else []:
        kind, _, number = path.stem.rpartition("-")
        if number.isdigit():
            found.append({"step": int(number), "kind": kind, "path": str(path)})
    return sorted(found, key=lambda one: (one["step"], one["kind"]))[-MOST_PREVIEWS:]


def log_after(folder: Path, offset: int) -> dict[str, Any]:
    """The complete lines of the log from a byte on, and the byte after them; all of it where the log became shorter."""
    path = folder / LOG
    try:
        size = path.stat().st_size
        if offset > size:
            offset = 0
        with path.open("rb") as file:
            file.seek(offset)
            raw = file.read(MOST_LOG_BYTES)
    except FileNotFoundError:
        return {"lines": [], "from": 0, "next": 0}
    whole = raw[: raw.rfind(b"\n") + 1]
    return {"lines": _parsed(whole), "from": offset, "next": offset + len(whole)}


def _parsed(raw: bytes) -> list[dict[str, Any]]:
    lines = []
    for text in raw.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and type(line.get("step")) is int:
                lines.append(line)
    return lines


def _last_lines(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last line of the log that counts images, and one some lines earlier; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = [line for line in _parsed(file.read()) if "images" in line and "seconds" in line]
    except OSError:
        return {}, {}
    return (lines[-1], lines[-min(len(lines), 6)]) if lines else ({}, {})


def _pace(before: dict[str, Any], last: dict[str, Any]) -> tuple[float | None, float | None]:
    """Seconds per step and images per second, over the last lines of the log."""
    if not last:
        return None, None
    first = before if before.get("step") != last.get("step") else {"step": 0, "seconds": 0.0, "images": 0.0}
    steps, seconds = last["step"] - first["step"], last["seconds"] - first["seconds"]
    if steps <= 0 or seconds <= 0:
        return None, None
    return seconds / steps, (last["images"] - first["images"]) / seconds


def _left(length: Length, last: dict[str, Any], per_step: float | None) -> float | None:
    if length.minutes is not None:
        left = max(0.0, 60 * length.minutes - float(last.get("seconds", 0.0)))
        if length.limits is None or per_step is None:
            return left
        least, most = ((count - last["step"]) * per_step for count in length.limits)
        return max(0.0, least, min(left, most))
    if length.steps is None or per_step is None:
        return None
    return max(0.0, (length.steps - last["step"]) * per_step)


def _state(pid: int | None, length: Length, last: dict[str, Any]) -> str:
    if pid is not None:
        return "running"
    done = last.get("step", 0)
    if length.minutes is not None:
        fewest, most = length.limits or (0, math.inf)
        over = float(last.get("seconds", 0.0)) >= NEAR_THE_END * 60 * length.minutes
        return "done" if (over and done >= fewest) or done >= most else "stopped"
    return "done" if length.steps is not None and done >= length.steps else "stopped"


def _length(config: dict[str, Any]) -> Length:
    train = config.get("train")
    train = train if isinstance(train, dict) else {}
    steps, minutes = train.get("steps"), train.get("minutes")
    if not isinstance(minutes, int | float):
        return Length(steps if isinstance(steps, int) else None, None)
    match train.get("step_limits"):
        case [int(fewest), int(most)]:
            return Length(None, float(minutes), (fewest, most))
    return Length(None, float(minutes))


@lru_cache(maxsize=1024)
def _config(path: Path, stamp: int) -> dict[str, Any]:
    try:
        read = parse_yaml(read_text(path), str(path))
    except UserError:
        return {}
    return read if isinstance(read, dict) else {}


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _changed(folder: Path) -> float:
    return max(_stamp(folder / LOG), _stamp(folder / CONFIG)) / 1e9
