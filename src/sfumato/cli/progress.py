"""Bars for long passes; where stderr is no terminal, now and then a line instead."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sfumato.fit.phases import clock
from sfumato.training.overall import Overall, current

Report = Callable[[int, int], None]


class Advance(Protocol):
    """Moves a bar on by so much; `of` is its length where that is known better by now."""

    def __call__(self, by: int, of: int | None = None) -> None: ...


SECONDS_BETWEEN = 0.1
SECONDS_TO_LINE = 20.0
"""Seconds from one line to the next where there is no terminal; a short pass prints none."""


class Lines:
    """A line of progress now and then, where no bar can be drawn."""

    def __init__(self, title: str, say: Callable[[str], None], unit: str = "") -> None:
        self._title, self._say, self._unit = title, say, f" {unit}" if unit else ""
        self._t_line = time.monotonic()
        self._first: tuple[float, int] | None = None
        """When the first report came, and what was done then: anything before it is irrelevant for the rate."""

    def update(self, done: int, total: int) -> None:
        """Prints where it stands, if the last line is long ago."""
        now = time.monotonic()
        self._first = self._first or (now, done)
        (t_first, before) = self._first
        if now - self._t_line < SECONDS_TO_LINE or done <= 0:
            return
        self._t_line = now
        left = ""
        if done > before:
            left = f", {clock((now - t_first) / (done - before) * max(0, total - done))} left"
        self._say(f"{self._title}: {done} of {total}{self._unit}{left}")


def tell(message: str) -> None:
    """Prints a line for the user, on stderr."""
    typer.echo(message, err=True)


_PRINTED: ContextVar[set[str] | None] = ContextVar("printed", default=None)


@contextmanager
def each_sentence_once() -> Iterator[None]:
    """Within the block `say` of `bars` prints no sentence twice: several passes over one folder find the same."""
    token = _PRINTED.set(set())
    try:
        yield
    finally:
        _PRINTED.reset(token)


def _is_new(message: str) -> bool:
    printed = _PRINTED.get()
    if printed is None:
        return True
    known = message in printed
    printed.add(message)
    return not known


@contextmanager
def bars(active: bool = True) -> Iterator[tuple[Callable[[str], None], Callable[[str], Report]]]:
    """Yields `say(message)` and `progress(title)`; the latter gives a callable of (done, total) that draws a bar.

    Both are silent where `active` is False. If the command has one bar for all, its text names the current activity.
    """
    overall = current() if active else None
    if overall is not None:
        say_above = overall.say
        yield lambda message: say_above(message) if _is_new(message) else None, lambda title: _noted(overall, title)
        return
    console = Console(stderr=True, quiet=not active)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:

        def line(message: str) -> None:
            console.print(message, highlight=False, markup=False, soft_wrap=True)

        def say(message: str) -> None:
            if _is_new(message):
                line(message)

        def progress(title: str) -> Report:
            task: TaskID | None = None
            t_shown = 0.0
            lines = Lines(title, line)

            def report(done: int, total: int) -> None:
                nonlocal task, t_shown
                if not console.is_terminal:
                    lines.update(done, total)
                    return
                if task is None:
                    task = shown.add_task(title, total=total)
                if done == total or time.monotonic() - t_shown > SECONDS_BETWEEN:
                    t_shown = time.monotonic()
                    shown.update(task, completed=done, total=total)

            return report

        yield say, progress


def _noted(overall: Overall, title: str) -> Report:
    """Shows a pass as the text of the command's bar."""
    return lambda done, total: overall.note(f"{title}: {done:,} of {total:,}")


@contextmanager
def counting(title: str, total: int, unit: str) -> Iterator[Advance]:
    """Draws a bar with the rate in `unit` per second and the time left; yields `advance`."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    t_start = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as shown:
        task = shown.add_task(title, total=total, rate="")
        done, length = 0, total
        lines = Lines(title, lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True), unit)

        def advance(by: int, of: int | None = None) -> None:
            nonlocal done, length
            done, length = done + by, length if of is None else of
            if not console.is_terminal:
                lines.update(done, length)
                return
            shown.update(
                task, advance=by, total=of, rate=f"{done / max(time.monotonic() - t_start, 1e-9):.1f} {unit}/s"
            )

        yield advance
