"""Lines of progress where no bar can be drawn."""

import pytest

from sfumato.cli import progress
from sfumato.cli.progress import Lines, bars, each_sentence_once


def test_the_time_left_is_of_the_rate_since_the_first_report(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    said: list[str] = []
    lines = Lines("scanning", said.append)
    for seconds, done in ((90.0, 1), (110.0, 101), (115.0, 151)):  # 90 s before the first say nothing of the rate
        now[0] = seconds
        lines.update(done, 201)
    assert said == ["scanning: 1 of 201", "scanning: 101 of 201, 20.0 s left"]


def test_within_a_command_of_several_passes_a_sentence_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    def two_passes() -> list[str]:
        for _ in range(2):
            with bars() as (say, _):
                say("2 images are alike")
        return capsys.readouterr().err.splitlines()

    assert two_passes() == ["2 images are alike"] * 2
    with each_sentence_once():
        assert two_passes() == ["2 images are alike"]
    assert two_passes() == ["2 images are alike"] * 2
