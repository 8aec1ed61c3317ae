"""What a measurement leaves behind: numbers as JSON, a page with tables, and one sheet of examples."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.checkpoint import replacing, write_text
from sfumato.images import image_grid, interleave, png_bytes

MOST_ROWS = 8
MOST_BYTES = 150_000
"""Of the sheet, which is meant to be kept among the documentation."""
PERCENT, TWO, THREE, WHOLE = "{:.1%}", "{:.2f}", "{:.3f}", "{:g}"


@dataclass(frozen=True)
class Table:
    """Named rows of numbers; None where there is nothing to measure. `columns` give each its format."""

    title: str
    columns: Mapping[str, str]
    rows: Mapping[str, Sequence[float | None]]

    def markdown(self) -> str:
        """The table with its title."""
        lines = [["", *self.columns], ["---"] * (len(self.columns) + 1)]
        for name, values in self.rows.items():
            cells = zip(self.columns.values(), values, strict=True)
            lines.append([name, *("–" if value is None else form.format(value) for form, value in cells)])
        return f"{self.title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"

    def as_json(self) -> dict[str, Any]:
        """By row and column."""
        return {
            "title": self.title,
            "rows": {name: dict(zip(self.columns, values, strict=True)) for name, values in self.rows.items()},
        }


@dataclass(frozen=True)
class Outcome:
    """Of one task: tables, and the sheet's columns by name, each images (N, 3, H, W) uint8 in the same order.

    `captions`: of each image, where the sheet does not show them; `notes`: sentences below the tables.
    """

    tables: Sequence[Table]
    sheet: Mapping[str, Tensor]
    seconds: float
    """To sample one image."""
    captions: Sequence[str] = ()
    notes: Sequence[str] = ()


def sheet_of(columns: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """The first images side by side, a row for each, in a PNG of at most MOST_BYTES; and how many rows there are.

    They are the first ones, not chosen ones.
    """
    rows = min(MOST_ROWS, *(len(images) for images in columns.values()))
    while True:
        shown = image_grid(interleave(*(images[:rows] for images in columns.values())), len(columns))
        if rows == 1 or len(png_bytes(shown)) <= MOST_BYTES:
            return shown, rows
        rows -= 1


def write_results(folder: Path, task: str, about: Mapping[str, Any], outcome: Outcome) -> None:
    """TASK.json, TASK.md and TASK.png in the folder."""
    sheet, rows = sheet_of(outcome.sheet)
    facts = {**about, "seconds_a_picture": round(outcome.seconds, 4), "sheet": list(outcome.sheet)}
    numbers = {"about": facts, "tables": [table.as_json() for table in outcome.tables], "notes": list(outcome.notes)}
    write_text(folder / f"{task}.json", json.dumps(numbers, indent=1) + "\n")
    write_text(folder / f"{task}.md", _page(task, facts, outcome, rows))
    with replacing(folder / f"{task}.png") as temporary:
        temporary.write_bytes(png_bytes(sheet))


def _page(task: str, facts: Mapping[str, Any], outcome: Outcome, rows: int) -> str:
    machine = facts["machine"]
    parts = [
        f"# {task}",
        f"    {facts['command']}",
        f"Model {facts['model']}, {facts['trained']}; {facts['images']} {facts['data']}, seeds {facts['seeds']}, "
        f"{facts['steps']} steps of {facts['sampler']}, guidance {facts['guidance']}; "
        f"{outcome.seconds:.2f} s an image in batches of {facts['batch']} on {machine['device']}, "
        f"{machine['threads']} threads.",
        *(table.markdown().rstrip() for table in outcome.tables),
        *outcome.notes,
        f"![{task}]({task}.png)",
        f"The first {rows}, not chosen; from left to right: {', '.join(outcome.sheet)}.",
    ]
    if outcome.captions:
        parts.append("\n".join(f"{i}. {text}" for i, text in enumerate(outcome.captions[:rows], 1)))
    return "\n\n".join(parts) + "\n"


def machine_of(machine: Any) -> dict[str, Any]:
    """The machine as JSON takes it."""
    return asdict(machine)
