"""The bar of a command with several parts: share done, time left, and trainings that show their progress in it."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from sfumato.cli.progress import bars
from sfumato.training.log import RunLog
from sfumato.training.overall import Overall, Part, shown_in

PARTS = [("first", 100.0, True), ("encoding", 50.0, False), ("second", 150.0, True)]


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def printed() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def overall(clock: Clock, printed: io.StringIO) -> Overall:
    return Overall("fit", [Part(*part) for part in PARTS], Console(file=printed, width=200), clock)


def test_what_is_left_follows_the_steps_of_the_part_and_the_plan_of_later_ones(overall: Overall, clock: Clock) -> None:
    assert (overall.share, overall.left) == (0, 300)
    with overall.part("first"):
        overall.move(0.0, "step 0")
        clock.now = 50
        overall.move(0.25, "step 1")
        assert overall.share == pytest.approx(25 / 300)
        assert overall.left == pytest.approx(150 + 200), "twice as slow as planned"
    with overall.part("encoding"):
        assert overall.share == pytest.approx(1 / 3)
        clock.now = 75
        assert overall.share == pytest.approx(125 / 300)
        assert overall.left == pytest.approx(25 + 150)
        clock.now = 500
        assert overall.share < 150 / 300, "a part that takes longer than planned is not over"
    overall.plan("second", 450.0)
    with overall.part("second"):
        overall.move(0.5, "resumed in the middle")
        clock.now = 510
        overall.move(0.6, "step 6")
        assert overall.left == pytest.approx(40)
    assert (overall.share, overall.left) == (1, 0)


def test_steps_that_were_timed_before_a_training_do_not_count_as_its_own(
    overall: Overall, clock: Clock, tmp_path: Path
) -> None:
    with shown_in(overall), overall.part("second"):
        with RunLog(tmp_path / "timed", "timing", 0, 0.0) as timed:
            timed.advance(1, 0.2, 8, "")
            timed.advance(5, 1.0, 40, "")
        with RunLog(tmp_path / "run", "diffusion", 0, 0.0) as log:
            clock.now = 100
            log.advance(1, 0.01, 8, "")
            clock.now = 200
            log.advance(2, 0.02, 16, "")
            assert overall.left == pytest.approx(98 * 100), "a hundredth in 100 s"


def test_a_training_and_a_pass_show_in_it(
    overall: Overall, clock: Clock, printed: io.StringIO, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with shown_in(overall), overall.part("first"):
        with bars() as (say, progress):
            clock.now = 31
            progress("scanning")(3, 9)
            say("nine images")
        with RunLog(tmp_path, "autoencoder", 0, 0.0) as log:
            clock.now = 62
            log.advance(1, 0.5, 8, "loss 1.0")
            log.say("a line")
    lines = printed.getvalue().splitlines()
    assert lines[0].startswith("fit: 0%  5:00 left  scanning: 3 of 9")
    assert lines[1] == "nine images"
    assert lines[2].startswith("fit: 17%  ")
    assert "autoencoder step 1 (50%)" in lines[2]
    assert lines[2].endswith("loss 1.0")
    assert lines[3] == "a line"
    assert capsys.readouterr().err == ""
    with bars() as (say, _):
        say("on its own")
    assert "on its own" in capsys.readouterr().err


def test_a_bar_ends_at_its_end(clock: Clock) -> None:
    terminal = io.StringIO()
    overall = Overall(
        "fit", [Part("first", 100.0, True)], Console(file=terminal, width=100, force_terminal=True), clock
    )
    with overall, overall.part("first"):
        overall.move(0.5, "step 1")
    assert "100%" in terminal.getvalue()
