"""Lines of progress where no bar can be drawn."""

import pytest

from sfumato.cli import progress
from sfumato.cli.progress import Lines


def test_the_time_left_is_of_the_rate_since_the_first_report(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    said: list[str] = []
    lines = Lines("scanning", said.append)
    for seconds, done in ((90.0, 1), (110.0, 101), (115.0, 151)):  # 90 s before the first say nothing of the rate
        now[0] = seconds
        lines.update(done, 201)
    assert said == ["scanning: 1 of 201", "scanning: 101 of 201, 20.0 s left"]
