"""One bar for a command of several parts: trainings and passes show in it what would else be bars of their own."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

PLAIN_LINE_SECONDS = 30.0
"""From one line to the next where there is no terminal."""
MEASURED_FROM = 5.0
"""Seconds of steps from which their own rate counts, not the plan's."""
MOST_BY_TIME = 0.95
"""Of a part that is known by its time alone, before it ends."""


@dataclass
class Part:
    """A part of the command: planned seconds; whether its share done is known by steps, else it is by time."""

    name: str
    planned: float
    steps: bool = False


class Overall:
    """The share done and the time left of all parts.

    Args:
        title: what stands before the bar.
        parts: in their order. Their times are the plan's, and what is left of the current part is extrapolated from
            its own steps.
        console: where the bar is; without a terminal lines are printed now and then.
        clock: seconds.
    """

    def __init__(
        self, title: str, parts: list[Part], console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._title, self._parts, self._clock = title, parts, clock
        self._console = console or Console(stderr=True)
        self._current: Part | None = None
        self._finished = 0
        self._share, self._share_before = 0.0, 0.0
        self._t_part = self._t_line = clock()
        self._t_steps: float | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]} left"),
            TextColumn("{task.fields[text]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=1.0, left="", text="")

    def __enter__(self) -> "Overall":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @property
    def share(self) -> float:
        """Of all parts, by their planned times, in [0, 1]."""
        total = sum(part.planned for part in self._parts)
        done = sum(part.planned for part in self._parts[: self._finished])
        now = 0.0 if self._current is None else self._share_now(self._current) * self._current.planned
        return min(1.0, (done + now) / max(total, 1e-9))

    @property
    def left(self) -> float:
        """Seconds to the end of all parts."""
        later = sum(part.planned for part in self._parts[self._finished + (self._current is not None) :])
        return later + (0.0 if self._current is None else self._left_of(self._current))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within the block the part of this name runs."""
        index = next(i for i, part in enumerate(self._parts) if part.name == name)
        self._current, self._finished = self._parts[index], index
        self.begin_steps()
        self._t_part = self._clock()
        self.note(name)
        try:
            yield
        finally:
            self._current, self._finished = None, index + 1
            if self._console.is_terminal:
                self.note("")

    def plan(self, name: str, seconds: float) -> None:
        """Another planned time of a part, as soon as it is known better."""
        next(part for part in self._parts if part.name == name).planned = seconds

    def begin_steps(self) -> None:
        """A training begins: its rate is measured anew, whatever was timed before it in the same part."""
        self._share, self._share_before, self._t_steps = 0.0, 0.0, None

    def move(self, share: float, text: str) -> None:
        """The share in [0, 1] of the steps of the current part that are done."""
        if self._t_steps is None:
            self._t_steps, self._share_before = self._clock(), share
        self._share = share
        self.note(text)

    def note(self, text: str) -> None:
        """The current activity."""
        if self._console.is_terminal:
            self._progress.update(self._task, completed=self.share, left=clock_of(self.left), text=text)
        elif self._clock() - self._t_line >= PLAIN_LINE_SECONDS:
            self._t_line = self._clock()
            self.say(f"{self._title}: {self.share:.0%}  {clock_of(self.left)} left  {text}")

    def say(self, message: str) -> None:
        """Prints a line above the bar."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def _share_now(self, part: Part) -> float:
        if part.steps:
            return self._share
        return min(MOST_BY_TIME, (self._clock() - self._t_part) / max(part.planned, 1e-9))

    def _left_of(self, part: Part) -> float:
        if part.steps and self._t_steps is not None:
            elapsed, done = self._clock() - self._t_steps, self._share - self._share_before
            if elapsed >= MEASURED_FROM and done > 0:
                return elapsed / done * (1 - self._share)
        return part.planned * (1 - self._share_now(part))


_CURRENT: ContextVar[Overall | None] = ContextVar("overall", default=None)


@contextmanager
def shown_in(overall: Overall) -> Iterator[Overall]:
    """Within the block `current` is this bar, and it is on the screen."""
    token = _CURRENT.set(overall)
    try:
        with overall:
            yield overall
    finally:
        _CURRENT.reset(token)


def current() -> Overall | None:
    """The bar of the command in which this is called; None where each training has its own."""
    return _CURRENT.get()


def clock_of(seconds: float) -> str:
    """4:05, or 1:04:05."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
