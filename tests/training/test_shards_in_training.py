"""Training from shards: a run that is interrupted goes on bit for bit; two processes train as one does."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from data.shards.make_shards import shards
from forks import COMMAND, Forks
from runs import (
    FIRST_STAGE,
    SECOND_STAGE,
    assert_ends_alike_when_interrupted,
    assert_same_up_to_rounding,
    logged,
)
from sfumato.cli.training_runs import run_autoencoder, run_diffusion
from sfumato.config import apply_overrides, parse
from sfumato.model_folder import load
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.diffusion_run import DiffusionRun
from training.test_processes import finished, in_two_processes

STEADY = [
    "train.optimiser.precision=float32",
    "train.optimiser.warmup_steps=0",
    "train.optimiser.learning_rate=1e-4",
    "train.condition_dropout=0.5",
    "conditioner.initial=original",
    "held_out.amount=3",
    "train.preview_every=50",
]


def damaged_shards(root: Path) -> dict[str, Any]:
    """Uneven shards of 17 images, one of which is cut off; as the section `data`."""
    shards(root, [3, 6, 2, 1, 5])
    bad = root / "00002.tar"
    bad.write_bytes(bad.read_bytes()[:2000])
    return {"kind": "shards", "path": str(root), "size": 16, "together": 2}


def test_a_run_on_shards_ends_alike_however_it_was_interrupted(
    tmp_path: Path, forks: Forks, capfd: pytest.CaptureFixture[str]
) -> None:
    data = damaged_shards(tmp_path / "shards")
    stage = apply_overrides({**FIRST_STAGE, "data": data}, ["train.steps=1"])
    run_autoencoder(parse(stage, AutoencoderRun, "first"), tmp_path / "first", None)
    assert "1 of 5 shards is skipped: the first is" in capfd.readouterr().err
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**SECOND_STAGE, "data": data}))
    command = [
        "train",
        "diffusion",
        file,
        "--autoencoder",
        tmp_path / "first",
        "--out",
        tmp_path / "two",
    ]
    both = in_two_processes(forks, COMMAND, *command, *STEADY, "train.batch=2")

    config = parse(apply_overrides({**SECOND_STAGE, "data": data}, STEADY), DiffusionRun, "second")
    first, cache = load(tmp_path / "first"), tmp_path / "cache"
    assert_ends_alike_when_interrupted(tmp_path, lambda out: run_diffusion(config, first, out, cache), step=5)

    finished(both)
    assert_same_up_to_rounding(tmp_path / "straight", tmp_path / "two")
    losses = [[line["loss"] for line in logged(tmp_path / name) if "loss" in line] for name in ("straight", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert len(losses[0]) == 6
