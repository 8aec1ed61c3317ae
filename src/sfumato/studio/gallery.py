"""The images that were made, kept as files: a reload, and the next start of the studio, find them again."""

import json
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from sfumato.checkpoint import write_first_free, write_text
from sfumato.errors import UserError
from sfumato.foreign import reading
from sfumato.plain_json import to_json

INDEX = "images.jsonl"
MOST_LISTED = 5_000


class Gallery:
    """A folder of PNG files and an index of what each was made by; newest first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._entries: list[dict[str, Any]] = []
        self._jobs: set[tuple[str, int]] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self._read()

    def keep(self, job: str, index: int, source: Path, facts: Mapping[str, Any]) -> None:
        """Copies an image of a job into the folder, once. `facts`: its seed, settings, time (`created`)."""
        with self._lock:
            if (job, index) in self._jobs:
                return
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{facts.get('seed', index)}"
            paths = (self.folder / (f"{name}.png" if n == 0 else f"{name}-{n}.png") for n in count())
            path = write_first_free(paths, lambda temporary: shutil.copyfile(source, temporary))
            self._add(path, {"created": time.time(), **facts, "job": job, "index": index})

    def listed(self, limit: int) -> dict[str, Any]:
        """The newest images as JSON."""
        with self._lock:
            newest = sorted(self._entries, key=lambda one: (-one["created"], one.get("index", 0)))
        return {"images": newest[: min(limit, MOST_LISTED)], "total": len(newest)}

    def path(self, name: str) -> Path:
        """The file of an image. Raises UserError if there is none of this name."""
        with self._lock:
            if any(one["name"] == name for one in self._entries):
                return self.folder / name
        raise UserError(f"there is no image {name[:100]!r}")

    def remove(self, name: str) -> None:
        """Removes an image and its file."""
        path = self.path(name)
        with self._lock:
            path.unlink(missing_ok=True)
            self._entries = [one for one in self._entries if one["name"] != name]
            write_text(self.folder / INDEX, "".join(to_json(one) + "\n" for one in self._entries))

    def _add(self, path: Path, facts: dict[str, Any]) -> None:
        with reading(path), Image.open(path) as image:
            width, height = image.size
        entry = {"name": path.name, "width": width, "height": height, **facts}
        self._entries.append(entry)
        self._jobs.add((facts["job"], facts["index"]))
        with (self.folder / INDEX).open("a", encoding="utf-8") as file:
            file.write(to_json(entry) + "\n")

    def _read(self) -> None:
        """The index, without lines that are damaged or whose file is gone."""
        try:
            lines = (self.folder / INDEX).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return
        self._entries = [one for one in _parsed(lines) if (self.folder / one["name"]).is_file()]
        self._jobs = {(one.get("job", ""), one.get("index", 0)) for one in self._entries}


def _parsed(lines: Iterable[str]) -> list[dict[str, Any]]:
    entries = []
    for line in lines:
        try:
            one = json.loads(line)
        except ValueError:
            continue
        if isinstance(one, dict) and isinstance(one.get("name"), str) and "/" not in one["name"] and "created" in one:
            entries.append(one)
    return entries
