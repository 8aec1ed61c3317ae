"""Progress and log of a run: a bar with rate and time left, a JSONL file, and a tracker."""

import json
import math
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sfumato.checkpoint import write_first_free, write_text
from sfumato.counts import how_many
from sfumato.errors import UserError
from sfumato.plain_json import to_json
from sfumato.training.overall import PLAIN_LINE_SECONDS, clock_of, current
from sfumato.training.trackers import Tracker, Tracking, open_tracker


class RunLog:
    """Writes `log.jsonl` in the run's folder, one object a line, and shows progress; silent if `active` is False.

    `done` is the share of the run that is over. Opened at a step, it drops the lines after that step: they belong to
    work that was lost and is repeated. A command of several trainings shows its progress in its own bar. `track` names
    a program that shows the same numbers.
    """

    def __init__(
        self, folder: Path, title: str, step: int, done: float, active: bool = True, track: Tracking = "auto"
    ) -> None:
        self._active = active
        self._console = Console(stderr=True, quiet=not active)
        self._title = title
        self._last_line = 0.0
        self._started, self._done_before = time.monotonic(), done
        self._progress: Progress | None = None
        self._folder = folder
        self._tracker: Tracker | None = None
        self._overall = current() if active else None
        if not active:
            return
        if self._overall is not None:
            self._overall.begin_steps()
        self._file = _continued(folder / "log.jsonl", step, self.say)
        self._tracker = open_tracker(track, folder, step)
        if self._console.is_terminal and self._overall is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("step {task.fields[step]}"),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=self._console,
            )
            self._task = self._progress.add_task(title, total=1.0, step=step, rate="", numbers="")
            self._progress.update(self._task, completed=done)
            self._progress.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()
        if self._active:
            self._file.close()
        if self._tracker:
            self._tracker.close()

    def say(self, message: str) -> None:
        """Prints a line for the user above the bar."""
        if self._overall is not None:
            self._overall.say(message)
            return
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def record(self, step: int, values: Mapping[str, float | list[float]]) -> None:
        """Adds a line to the JSONL, and numbers to the tracker; without those that are not finite: JSON has none."""
        if not self._active:
            return
        line = {"step": step, **{name: _rounded(value) for name, value in values.items() if _finite(value)}}
        self._file.write(to_json(line) + "\n")
        self._file.flush()
        if self._tracker:
            self._tracker.scalars(step, {name: each for name, each in values.items() if isinstance(each, int | float)})

    def show_previews(self, step: int) -> None:
        """Gives the previews of a step to the tracker."""
        if self._tracker:
            for path in sorted((self._folder / "previews").glob(f"*-{step:08d}.png")):
                self._tracker.image(step, path.stem.rpartition("-")[0], path)

    def advance(self, step: int, done: float, images: int, numbers: str) -> None:
        """Moves the bar to `step`, the share `done` of the run; `images` were used since this log was opened."""
        elapsed = time.monotonic() - self._started
        rate = f"{images / max(elapsed, 1e-9):.1f} img/s"
        if self._overall is not None:
            self._overall.move(done, f"{self._title} step {step:,} ({done:.0%})  {rate}  {numbers}")
        elif self._progress:
            self._progress.update(self._task, completed=done, step=step, rate=rate, numbers=numbers)
        elif self._active and (time.monotonic() - self._last_line > PLAIN_LINE_SECONDS or done == 1):
            self._last_line = time.monotonic()
            left = elapsed / max(1e-9, done - self._done_before) * (1 - done)
            self.say(f"{self._title}: step {step} ({done:.0%})  {rate}  {clock_of(left)} left  {numbers}")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a log; a half-written last line, and invalid lines, are skipped."""
    return _read(path)[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The lines of a log, and the numbers of invalid ones except the last, which a kill may have cut.

    Raises UserError if the file cannot be read.
    """
    if not path.exists():
        return [], []
    if not path.is_file():
        raise UserError(f"{str(path)!r} is not a file: move it away")
    texts = path.read_bytes().split(b"\n")
    parsed = [_line(text) for text in texts]
    bad = [number for number, line in enumerate(parsed[:-1], 1) if line is None and texts[number - 1].strip()]
    return [line for line in parsed if line is not None], bad


def _line(text: bytes) -> dict[str, Any] | None:
    """A line of a log, an object whose step is a number; None for anything else."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and type(line.get("step")) is int else None


def _continued(path: Path, step: int, say: Callable[[str], None]) -> TextIO:
    """The log without the lines after a step, opened for appending; a file with invalid lines is copied first, with a
    message."""
    lines, bad = _read(path)
    if bad:
        aside = write_first_free(
            (path.with_name(f"log.damaged-{n}.jsonl") for n in count(1)),
            lambda copy: copy.write_bytes(path.read_bytes()),
        )
        say(
            f"{how_many(len(bad), 'line')} of {path} cannot be read, the first is line {bad[0]}; the file is kept as "
            f"{aside}"
        )
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step))
    return path.open("a", encoding="utf-8")


def _finite(value: float | list[float]) -> bool:
    return all(math.isfinite(v) for v in (value if isinstance(value, list) else [value]))


def _rounded(value: float | list[float]) -> float | list[float]:
    if isinstance(value, bool):
        return value
    return [float(f"{v:.6g}") for v in value] if isinstance(value, list) else float(f"{value:.6g}")
