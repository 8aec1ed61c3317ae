"""Progress and record of a run: a bar with rate and time left, a plain JSONL, TensorBoard where it is installed."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sfumato.checkpoint import write_text
from sfumato.plain_json import to_json

PLAIN_LINE_SECONDS = 30.0


class RunLog:
    """Writes `log.jsonl` in the run's folder, one object a line, and shows progress; silent where `active` is False.

    `done` is the share of the run that is over. Opened at a step it drops the lines after that step: they belong to
    work that was lost and is done again.
    """

    def __init__(self, folder: Path, title: str, step: int, done: float, active: bool = True) -> None:
        self._active = active
        self._console = Console(stderr=True, quiet=not active)
        self._title = title
        self._last_line = 0.0
        self._started, self._done_before = time.monotonic(), done
        self._progress: Progress | None = None
        self._board: Any = None
        if not active:
            return
        path = folder / "log.jsonl"
        kept = [line for line in read_lines(path) if line.get("step", 0) <= step]
        write_text(path, "".join(to_json(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = _tensorboard(folder, step)
        if self._console.is_terminal:
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
        if self._board:
            self._board.close()

    def say(self, message: str) -> None:
        """One line for the user, kept beside the bar."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def record(self, step: int, values: Mapping[str, float | list[float]]) -> None:
        """Adds a line to the JSONL (and scalars to TensorBoard). A number that is not finite has no place in JSON."""
        if not self._active:
            return
        line = {"step": step, **{name: _rounded(value) for name, value in values.items() if _finite(value)}}
        self._file.write(to_json(line) + "\n")
        self._file.flush()
        if self._board:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)

    def advance(self, step: int, done: float, images: int, numbers: str) -> None:
        """Moves the bar to `step`, the share `done` of the run; `images` were seen since this log was opened."""
        elapsed = time.monotonic() - self._started
        rate = f"{images / max(elapsed, 1e-9):.1f} img/s"
        if self._progress:
            self._progress.update(self._task, completed=done, step=step, rate=rate, numbers=numbers)
        elif self._active and (time.monotonic() - self._last_line > PLAIN_LINE_SECONDS or done == 1):
            self._last_line = time.monotonic()
            left = elapsed / max(1e-9, done - self._done_before) * (1 - done)
            self.say(f"{self._title}: step {step} ({done:.0%})  {rate}  {_clock(left)} left  {numbers}")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; a half-written last line is passed over."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def _finite(value: float | list[float]) -> bool:
    return all(math.isfinite(v) for v in (value if isinstance(value, list) else [value]))


def _rounded(value: float | list[float]) -> float | list[float]:
    if isinstance(value, bool):
        return value
    return [float(f"{v:.6g}") for v in value] if isinstance(value, list) else float(f"{value:.6g}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
