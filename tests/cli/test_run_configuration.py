"""A configuration and what is typed beside it."""

from pathlib import Path

import pytest
import yaml

from sfumato.cli.run_configuration import with_overrides
from sfumato.config import parse, read_source
from sfumato.training.diffusion_run import DiffusionRun


@pytest.mark.parametrize("typed", ["conditioner.kind=none", "conditioner={kind: none}"])
def test_without_a_condition_its_settings_go(capsys: pytest.CaptureFixture[str], typed: str) -> None:
    raw = with_overrides("zoo:toy/small-text", [typed], DiffusionRun)
    run = parse(raw, DiffusionRun, "x")
    assert (run.conditioner.kind, run.objective.condition_mean) == ("none", 0)
    said = capsys.readouterr().err
    assert "train.condition_dropout does not apply to it, dropped" in said
    assert "objective.condition_mean does not apply to it, dropped" in said
    kept = with_overrides("zoo:toy/small-text", [typed, "objective.condition_mean=1"], DiffusionRun)
    assert kept["objective"]["condition_mean"] == 1, "what is typed is not dropped: training refuses it"


def test_a_number_of_steps_that_is_typed_replaces_the_minutes_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    raw = read_source("zoo:toy/small-text")
    raw["train"] |= {"minutes": 8.0, "step_limits": [200, 6000]}
    file.write_text(yaml.safe_dump(raw))
    longer = with_overrides(str(file), ["train.steps=9000"], DiffusionRun)
    assert "minutes" not in longer["train"]
    assert parse(longer, DiffusionRun, "x").train.steps == 9000
    said = capsys.readouterr().err
    assert "train.steps=9000: train.minutes of the configuration does not apply, dropped" in said
    kept = with_overrides(str(file), ["train.steps=9000", "train.minutes=3"], DiffusionRun)
    assert kept["train"]["minutes"] == 3
    assert capsys.readouterr().err == ""
