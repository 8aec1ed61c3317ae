"""A folder of images before training: the report of `sfumato data`, shortened for the page, and thumbnails."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from sfumato.cards.card import CARD_FILE
from sfumato.data.listing import is_run
from sfumato.data.opening import is_image
from sfumato.data.reading import decode
from sfumato.errors import UserError
from sfumato.studio.places import INSIDE_RUNS, Places

SECONDS = 900.0
SHOWN = 24
CAPTIONS = 8
THUMBNAIL = 256
WHITE = (255, 255, 255)
METADATA = frozenset({"metadata.jsonl", "metadata.csv", "metadata.parquet"})
MOST_FOLDERS = 300


def data_folders(places: Places, leave: Path) -> list[dict[str, Any]]:
    """Folders with images below the given ones, with their number; not those of runs, nor below `leave`."""
    found: dict[Path, int] = {}
    described: set[Path] = set()

    def enter(folder: Path, files: list[str], inner: list[str]) -> bool:
        if folder == leave or folder.name in INSIDE_RUNS or is_run(files, inner) or CARD_FILE in files:
            return False
        images = sum(map(is_image, files))
        if images:
            found[folder] = images
        if METADATA & set(files):
            described.add(folder)
        return True

    for _ in places.folders_in(enter):
        pass
    sums = dict(found)
    for folder, images in found.items():
        for parent in folder.parents:
            if not any(parent.is_relative_to(root.resolve()) for root in places.folders):
                break
            sums[parent] = sums.get(parent, 0) + images
    several = [folder for folder in sums if folder in found or folder in described or _parts(folder, found) > 1]
    rows = [{"path": str(one), "name": places.name_of(one), "images": sums[one]} for one in sorted(several)]
    return rows[:MOST_FOLDERS]


def _parts(folder: Path, found: dict[Path, int]) -> int:
    """Sub-folders with images, such as one for each class."""
    return sum(each.parent == folder for each in found)


class Looks:
    """Reports on folders, remembered until the folder changes; one is made at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[tuple[str, int], dict[str, Any]] = {}

    def look(self, folder: Path) -> dict[str, Any]:
        """The report. Raises UserError with the command's own sentence where the folder cannot be used."""
        if not folder.is_dir():
            raise UserError(f"{str(folder)!r} is not a folder: choose the folder of the images")
        with self._lock:
            key = (str(folder), folder.stat().st_mtime_ns)
            if key not in self._made:
                self._made[key] = shortened(_report(folder), folder)
            return self._made[key]


def _report(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "sfumato", "data", str(folder), "--json"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=quiet_environment())
    except subprocess.TimeoutExpired:
        raise UserError(
            f"looking at {str(folder)!r} took over {SECONDS / 60:.0f} minutes: use `sfumato data`"
        ) from None
    if ended.returncode != 0:
        lines = ended.stderr.strip().splitlines() or ["no reason given"]
        raise UserError(lines[-1].removeprefix("sfumato: "))
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def shortened(report: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Counts instead of lists of every file, some captions, the first images."""
    captions = report["captions"]
    some = [{"file": file, "text": text if isinstance(text, str) else text[0]} for file, text in captions.items()]
    files = _some_files(report, folder)
    return {
        "path": report["path"],
        "images": report["images"],
        "sizes": report["sizes"],
        "formats": report["formats"],
        "captioned": len(captions),
        "captions": some[:: max(1, len(some) // CAPTIONS)][:CAPTIONS],
        "classes": report["classes"],
        "left_out": len(report["left_out"]),
        "unreadable": report["unreadable"][:CAPTIONS],
        "duplicates": len(report["duplicates"]),
        "held_out": len(report["held_out"]),
        "warnings": report["warnings"],
        "recommended": report.get("recommended"),
        "shown": [str(folder / name) for name in files],
    }


def _some_files(report: dict[str, Any], folder: Path) -> list[str]:
    """Images spread over the folder."""
    named = list(report["labels"] or report["captions"])
    if not named:
        for root, _, files in os.walk(folder):
            named += [os.path.relpath(os.path.join(root, name), folder) for name in sorted(files) if is_image(name)]
            if len(named) > 10 * SHOWN:
                break
    return named[:: max(1, len(named) // SHOWN)][:SHOWN]


def thumbnail(path: Path) -> bytes:
    """A small JPEG of an image of a folder; restricted readers only. Raises UserError for other files."""
    if not is_image(path.name):
        raise UserError(f"{path.name!r} is not an image")
    try:
        image = decode(path, WHITE, (THUMBNAIL, THUMBNAIL))
    except Exception as error:
        raise UserError(f"{path.name!r} cannot be read: {error}") from None
    if min(image.size) > THUMBNAIL:
        image.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL))
    stream = io.BytesIO()
    small = max(image.size) <= THUMBNAIL
    image.save(stream, format="PNG" if small else "JPEG", **({} if small else {"quality": 85}))
    return stream.getvalue()


def quiet_environment() -> dict[str, str]:
    """The environment of commands that the studio runs: plain text without colours and bars."""
    return {**os.environ, "NO_COLOR": "1", "TERM": "dumb", "PYTHONUNBUFFERED": "1"}
