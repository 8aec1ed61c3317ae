"""The comparison of objectives: every variant can be trained, and its table holds the results of the runs."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from sfumato.config import read_source
from sfumato.diffusion.objective import check_objective
from sfumato.diffusion.schedule import build_schedule
from sfumato.training.diffusion_run import DiffusionRun


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])


@pytest.fixture
def objectives() -> ModuleType:
    return importlib.import_module("benchmarks.objectives")


@pytest.fixture
def ablation() -> ModuleType:
    return importlib.import_module("benchmarks.ablation")


def test_every_variant_is_a_configuration_that_can_be_trained(objectives: ModuleType, ablation: ModuleType) -> None:
    raw = read_source("zoo:toy/text")
    seen = set()

    def configured(name: str) -> DiffusionRun:
        run: DiffusionRun = ablation.run_config(objectives.COMPARISON, raw, name, 1, 40, 10)
        return run

    for name in objectives.VARIANTS:
        config = configured(name)
        check_objective(config.objective, build_schedule(config.schedule))
        seen.add((config.objective.model_dump_json(), config.schedule.model_dump_json()))
        assert (config.train.seed, config.train.steps, config.train.power_averages.snapshots) == (1, 40, 6)
        assert config.denoiser == configured(objectives.PAPER).denoiser
    assert len(seen) == len(objectives.VARIANTS), "two variants are one"


def test_the_table_states_the_time_to_the_papers_quality(objectives: ModuleType, ablation: ModuleType) -> None:
    def record(name: str, seed: int, *facts: float) -> object:
        points = (ablation.Point(10 * (i + 1), 60.0 * (i + 1), value) for i, value in enumerate(facts))
        return ablation.Record(name, seed, 10 * len(facts), tuple(points))

    records = [
        record(objectives.PAPER, 0, 0.2, 0.45),
        record(objectives.PAPER, 1, 0.2, 0.55),
        record("v", 0, 0.3, 0.8),
        record("v", 1, 0.5, 0.8),
        record("flow", 0, 0.1, 0.2),
    ]
    lines = ablation.table(objectives.COMPARISON, records).splitlines()[2:5]
    assert [line.split("|")[1].strip() for line in lines] == ["v", "eps", "flow"]
    assert "| 80.0% | ± 0.0% | – | – | 0.62 × |" in lines[0]  # 0.4 after one minute, 0.8 after two: 0.5 after 1.25 of 2
    assert "| 50.0% | ± 7.1% | – | – | 1.00 × |" in lines[1]
    assert "| 20.0% | – | – | – | not reached |" in lines[2]


def test_images_that_no_reader_knows_are_scored_by_their_distance(objectives: ModuleType, ablation: ModuleType) -> None:
    def record(name: str, seed: int, *distances: float) -> object:
        points = (ablation.Point(10 * (i + 1), 60.0 * (i + 1), None, value) for i, value in enumerate(distances))
        return ablation.Record(name, seed, 10 * len(distances), tuple(points))

    records = [record(objectives.PAPER, 0, 9, 5, 4), record("v", 0, 8, 2, 1.5), record("v", 1, 8, 2, 0.5)]
    head, _, *lines = ablation.table(objectives.COMPARISON, records).splitlines()[:4]
    assert "facts" not in head
    assert [line.split("|")[1].strip() for line in lines] == ["v", "eps"]
    assert "| v | 2 |" in lines[0]
    assert "| 3.0 | 1 | ± 0.71 | 0.56 × |" in lines[0]  # 8 after one minute, 2 after two: 4 after 1.67 of 3
    with pytest.raises(Exception, match="offline"):
        _ = ablation.Point(1, 1.0, None).score
