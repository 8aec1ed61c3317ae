"""States of a run that several processes write, each its part: a folder of safetensors files instead of one file.

The files are those of torch.distributed.checkpoint's safetensors format, which notes in each header which part of a
tensor it holds, so that any number of processes can read them; nothing is pickled. `state.json` has the counters, and
size and checksum of each file.
"""

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.errors import UserError
from sfumato.plain_json import to_json

STATE_FILE = "state.json"
_BLOCK = 1 << 22


def draft_of(path: Path) -> Path:
    """The temporary name of a folder, the same in all processes."""
    return path.with_name(f".{path.name}.part")


def file_facts(path: Path) -> list[int]:
    """Size and CRC-32 of a file."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
        os.fsync(file.fileno())
        return [file.tell(), value]


def seal(draft: Path, path: Path, facts: Mapping[str, list[int]], numbers: Mapping[str, Any]) -> None:
    """Writes the state's own file into the draft, and renames the draft to `path`, replacing a state there."""
    with open(draft / STATE_FILE, "w", encoding="utf-8") as file:
        file.write(to_json({"files": dict(facts), "numbers": dict(numbers)}))
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        discard(path)
    os.replace(draft, path)


def read_numbers(path: Path) -> dict[str, Any]:
    """The counters of a state. Raises UserError if any of its files is missing or has changed."""
    try:
        found = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        files, numbers = found["files"], found["numbers"]
        for name, facts in files.items():
            if Path(name).name != name or file_facts(path / name) != facts:
                raise UserError(f"its file {name!r} does not have the checksum that was noted")
        return dict(numbers)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"its {STATE_FILE} or a file that it names cannot be read ({error})") from None


def discard(path: Path) -> None:
    """Removes a state's folder; if interrupted, what is left has a temporary name."""
    draft = draft_of(path)
    shutil.rmtree(draft, ignore_errors=True)
    os.replace(path, draft)
    shutil.rmtree(draft, ignore_errors=True)
