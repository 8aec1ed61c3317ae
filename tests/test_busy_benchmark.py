"""The benchmark of a step beside a busy program, with a few steps of a tiny network."""

from pathlib import Path

import pytest

from tiny import model

TINY = [
    "denoiser.channels=32",
    "denoiser.channel_multipliers=[1]",
    "denoiser.attention_factors=[]",
    "objective.condition_mean=0",
    "conditioner={kind: none}",
    "train.condition_dropout=0",
    "train.batch=2",
]


def test_three_rows_and_their_ratio(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    from benchmarks import busy

    asked: list[tuple[bool, int | None]] = []
    running = [False]

    def seconds(out: Path, first: Path, steps: int, settings: list[str], threads: int | None = None) -> float:
        asked.append((running[0], threads))
        return 0.05 if running[0] else 0.04

    real = busy.busy_program

    @busy.contextmanager
    def watched():  # type: ignore[no-untyped-def]
        with real():
            running[0] = True
            yield

    monkeypatch.setattr(busy, "trained_first", lambda root: root)
    monkeypatch.setattr(busy, "seconds", seconds)
    monkeypatch.setattr(busy, "busy_program", watched)
    busy.main(["--steps", "4", *TINY])
    assert asked == [(False, 1), (False, None), (True, None)]
    assert "1.25 of the idle time" in capsys.readouterr().out


def test_a_row_is_of_a_real_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    from benchmarks import busy

    model("diffusion=null", "autoencoder.channel_multipliers=[1, 1, 1]", "image_size=[32, 32]").save(tmp_path / "first")
    assert busy.seconds(tmp_path / "run", tmp_path / "first", 3, TINY, threads=1) > 0
