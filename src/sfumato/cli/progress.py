"""Bars for long passes before a loop begins."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Report = Callable[[int, int], None]


class Advance(Protocol):
    """Moves a bar on by so much; `of` is its length where that is known better by now."""

    def __call__(self, by: int, of: int | None = None) -> None: ...


SECONDS_BETWEEN = 0.1


@contextmanager
def bars(active: bool = True) -> Iterator[tuple[Callable[[str], None], Callable[[str], Report]]]:
    """Yields `say(message)` and `progress(title)`; the latter gives a callable of (done, total) that draws a bar.

    Both are silent where `active` is False.
    """
    console = Console(stderr=True, quiet=not active)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:

        def progress(title: str) -> Report:
            task: TaskID | None = None
            t_shown = 0.0

            def report(done: int, total: int) -> None:
                nonlocal task, t_shown
                if task is None:
                    task = shown.add_task(title, total=total)
                if done == total or time.monotonic() - t_shown > SECONDS_BETWEEN:
                    t_shown = time.monotonic()
                    shown.update(task, completed=done, total=total)

            return report

        yield lambda message: console.print(message, highlight=False, markup=False, soft_wrap=True), progress


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
        done = 0

        def advance(by: int, of: int | None = None) -> None:
            nonlocal done
            done += by
            shown.update(
                task, advance=by, total=of, rate=f"{done / max(time.monotonic() - t_start, 1e-9):.1f} {unit}/s"
            )

        yield advance
