"""What interrupted writers left in a cache: drafts and locks, by the names that all of them use."""

import re
import shutil
from contextlib import suppress
from pathlib import Path

from sfumato.errors import UserError
from sfumato.locks import exclusive

_LEFT = re.compile(r"\.(?P<name>(?:pixels|latents)-[0-9a-f]{32}|contents\.bin)\.(?:\d+\.part|lock)")
"""Only what is named after a cache: the folder may hold other programs' files."""


def draft_path(place: Path, process: int) -> Path:
    """Where a process writes what will be renamed to `place`, while it holds the lock of `place`."""
    return place.with_name(f".{place.name}.{process}.part")


def remove_leftovers(cache: Path) -> None:
    """Removes the drafts and locks whose writer is dead: nobody holds the lock of what they were to become."""
    if not cache.is_dir():
        return
    for entry in list(cache.iterdir()):
        found = _LEFT.fullmatch(entry.name)
        if found is None:
            continue
        with suppress(UserError), exclusive(cache / found["name"]):  # refused: its writer lives; released: lock removed
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.suffix == ".part":
                with suppress(OSError):
                    entry.unlink(missing_ok=True)
