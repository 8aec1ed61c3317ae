"""A configuration and what is typed beside it."""

import pytest

from sfumato.cli.run_configuration import with_overrides
from sfumato.config import parse
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
