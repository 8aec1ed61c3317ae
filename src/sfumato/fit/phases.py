"""The phases of a long command: what is going on, and how long each took over all sessions."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from sfumato.checkpoint import write_text
from sfumato.plain_json import numbers_in, to_json
from sfumato.report.result import Training
from sfumato.training.overall import Overall


class Phases:
    """Announces `count` phases and their times by `say`; the times of a resumed command add up in a JSON file.

    `overall` is the command's bar, which has a part for each phase.
    """

    def __init__(self, file: Path, count: int, say: Callable[[str], None], overall: Overall | None = None) -> None:
        self._file, self._count, self._begun, self._say = file, count, 0, say
        self._overall = overall
        self._before: dict[str, float] = numbers_in(file)
        self.seconds: dict[str, float] = {}
        self._t_begun = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of the finished phases over all sessions, and of the current one."""
        return sum(self.seconds.values()) + (time.monotonic() - self._t_begun)

    @property
    def elapsed_before(self) -> float:
        """Seconds of the sessions before this one."""
        return sum(self._before.values())

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._begun += 1
        self._say(f"[{self._begun}/{self._count}] {name}")
        t_start = self._t_begun = time.monotonic()
        try:
            with nullcontext() if self._overall is None else self._overall.part(name):
                yield
        finally:
            elapsed = time.monotonic() - t_start
            self._t_begun = time.monotonic()
            self.seconds[name] = round(self._before.get(name, 0.0) + elapsed, 2)
            write_text(self._file, to_json({**self._before, **self.seconds}, indent=1) + "\n")
            self._say(f"      {name}: {clock(elapsed)}")

    def with_trainings(self, names: Iterable[str], trainings: Iterable[Training]) -> dict[str, float]:
        """Seconds by phase. A session that was killed left no phase time: its steps' time counts all the same."""
        seconds = dict(self.seconds)
        for name, trained in zip(names, trainings, strict=True):
            seconds[name] = max(seconds[name], trained.seconds)
        return seconds


def clock(seconds: float) -> str:
    """12.3 s, or 4:05 min from a minute on."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{seconds:.1f} s"
