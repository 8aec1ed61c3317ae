"""The sampler `auto`: one case for each row of its rule in docs/samplers.md."""

import pytest

from sfumato.diffusion.prediction import PredictionKind
from sfumato.diffusion.schedule import CosineConfig, FlowConfig, ScaledLinearConfig, ScheduleConfig, build_schedule
from sfumato.sampling.auto import choose
from sfumato.sampling.dpm_solver import DPM2MConfig
from sfumato.sampling.unipc import UniPCConfig

LINEAR, COSINE, FLOW = ScaledLinearConfig(), CosineConfig(), FlowConfig()
CASES: list[tuple[ScheduleConfig, PredictionKind, int, float, str, str]] = [
    (LINEAR, "eps", 5, 1.0, "unipc", "trailing"),
    (LINEAR, "v", 19, 3.0, "unipc", "log-snr"),
    (LINEAR, "eps", 20, 3.0, "dpmpp-2m", "log-snr"),
    (COSINE, "v", 8, 3.0, "unipc", "trailing"),
    (FLOW, "flow", 7, 1.0, "unipc", "trailing"),
    (FLOW, "flow", 7, 1.5, "ddim", "trailing"),
    (FLOW, "flow", 8, 1.5, "dpmpp-2m", "trailing"),
    (FLOW, "flow", 19, 1.0, "unipc", "trailing"),
    (FLOW, "flow", 20, 1.0, "dpmpp-2m", "trailing"),
]


@pytest.mark.parametrize(("schedule", "prediction", "steps", "guidance", "sampler", "grid"), CASES)
def test_the_rule(
    schedule: ScheduleConfig, prediction: PredictionKind, steps: int, guidance: float, sampler: str, grid: str
) -> None:
    choice = choose(build_schedule(schedule), prediction, steps, guidance)
    assert (choice.sampler.kind, choice.grid.kind) == (sampler, grid)
    assert str(steps) in choice.reason
    if isinstance(choice.sampler, UniPCConfig):
        assert choice.sampler.order == 2
    if isinstance(choice.sampler, DPM2MConfig):
        assert "second-order" in choice.reason
    assert ("overshoots" in choice.reason) == (guidance > 1)
