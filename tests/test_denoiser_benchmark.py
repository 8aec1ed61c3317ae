"""The comparison of denoisers: its variants can be trained, their costs are counted, and steps are given by cost."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from sfumato.config import read_source
from sfumato.denoiser.convnext import ConvNeXtConfig
from sfumato.denoiser.dit import DiTConfig
from sfumato.denoiser.unet import UNetConfig


@pytest.fixture
def denoisers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    return importlib.import_module("benchmarks.denoisers")


def test_variants_replace_the_denoiser_alone_and_cost_about_the_same(denoisers: ModuleType) -> None:
    costs = importlib.import_module("benchmarks.denoiser_cost")
    ablation = importlib.import_module("benchmarks.ablation")
    raw, first = read_source("zoo:toy/small-text"), denoisers.untrained("zoo:toy/small-autoencoder")
    comparison = denoisers.comparison_of(denoisers.SETTINGS)
    runs = {name: ablation.run_config(comparison, raw, name, 1, 40, 10) for name in denoisers.SETTINGS}
    kinds = {name: type(run.denoiser) for name, run in runs.items()}
    assert list(kinds.values()) == [UNetConfig, ConvNeXtConfig, DiTConfig, DiTConfig]
    shipped = read_source("zoo:toy/small-dit")
    assert shipped == {**raw, "denoiser": shipped["denoiser"]}
    assert runs["dit, patch 1"].denoiser == DiTConfig.model_validate(shipped["denoiser"])
    own = runs["unet"]
    for name, run in runs.items():
        assert run.model_copy(update={"denoiser": own.denoiser}) == own, name
        operations = costs.call_operations(run, first) / costs.call_operations(own, first)
        assert 0.9 < operations < 1.1, name


def test_costs_are_measured_once_and_decide_the_steps(
    denoisers: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["denoiser.channels=16", "denoiser.head_channels=16", "denoiser.attention_factors=[2]", "train.batch=2"]
    arguments = ["costs", "--rounds", "1", "--out", str(tmp_path), *small]
    tiny = "tiny=denoiser={kind: convnext, channels: 8, channel_multipliers: [1], blocks: [1], head_channels: 8}"
    denoisers.main([*arguments, "--only", "tiny", "--also", tiny])
    first = (tmp_path / "costs.json").read_text()
    shown = capsys.readouterr().out
    assert "| unet |" in shown
    assert "| tiny |" in shown
    denoisers.main([*arguments, "--only", "tiny", "--also", tiny])
    assert (tmp_path / "costs.json").read_text() == first
    cost = denoisers.Cost(1, 10, 100, 2.0, 1.0, 1.0)
    known = {"unet": cost, "other": denoisers.Cost(1, 10, 50, 4.0, 1.0, 1.0)}
    assert denoisers.steps_of(known, "other", 1000, "operations") == 2000
    assert denoisers.steps_of(known, "other", 1000, "seconds") == 500
    assert denoisers.steps_of(known, "unet", 1000, "seconds") == 1000


def test_a_denoiser_of_ones_own_is_read_from_the_command_line(denoisers: ModuleType) -> None:
    also = "slow=denoiser={kind: unet, channels: 32} train.optimiser.learning_rate=0.002"
    options = denoisers.parsed(["costs", "--also", also])
    name, settings = options.also[0]
    assert (name, settings) == ("slow", ("denoiser={kind: unet, channels: 32}", "train.optimiser.learning_rate=0.002"))
    with pytest.raises(SystemExit, match="2"):
        denoisers.parsed(["costs", "--also", "nothing"])
