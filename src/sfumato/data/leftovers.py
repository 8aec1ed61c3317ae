"""Leftovers of interrupted writers in a cache: drafts and locks, recognised by their names."""

import re
import shutil
from contextlib import suppress
from pathlib import Path

from sfumato.errors import UserError
from sfumato.locks import exclusive

_LEFT = re.compile(r"\.(?P<name>(?:pixels|latents|copy)-[0-9a-f]{32}|contents\.bin)\.(?:\d+\.part|lock)")
"""Only names derived from a cache: the folder may contain files of other programs."""


def draft_path(place: Path, process: int) -> Path:
    """The path at which a process writes before it renames to `place`, holding the lock of `place`."""
    return place.with_name(f".{place.name}.{process}.part")


def remove_leftovers(cache: Path) -> None:
    """Removes the drafts and locks whose writer is dead: no process holds the lock of their target."""
    if not cache.is_dir():
        return
    for entry in list(cache.iterdir()):
        found = _LEFT.fullmatch(entry.name)
        if found is None:
            continue
        with (
            suppress(UserError),
            exclusive(cache / found["name"]),
        ):  # refused: its writer is alive; released: lock removed
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.suffix == ".part":
                with suppress(OSError):
                    entry.unlink(missing_ok=True)
