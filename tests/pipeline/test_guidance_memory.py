"""The memory of guidance belongs to one trajectory of one window, and advances once per step."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import tiny
from sfumato.conditioning.condition import Condition
from sfumato.diffusion.schedule import ScaledLinearConfig, build_schedule
from sfumato.model import LatentDiffusion
from sfumato.pipeline.request import Projection
from sfumato.sampling.grids import GridConfig, build_grid
from sfumato.sampling.guidance import Projected, Trajectory, classifier_free
from sfumato.sampling.inpainting import KnownRegion, with_jumps
from sfumato.sampling.loop import sample
from sfumato.sampling.table import SAMPLERS, build_sampler

WEIGHT = -0.5


class Pointwise(nn.Module):
    """A network whose every position sees itself alone, so that windows cannot matter."""

    def forward(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        assert condition.tokens is not None
        shift = condition.tokens.mean((1, 2))[:, None, None, None]
        out: Tensor = 0.3 * torch.sin(3 * x_t + 20 * shift)
        return out


def pointwise() -> LatentDiffusion:
    model = tiny.model()
    assert model.second is not None
    return replace(model, second=replace(model.second, denoiser=Pointwise()))


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_windows_do_not_share_a_momentum(sampler: str) -> None:
    """Of a network that sees single positions, windows give the whole canvas's image."""
    model = pointwise()
    latents = {}
    for window in (0, 16):
        seen: list[Tensor] = []
        model.sample_tensor(
            tiny.TEXTS[0],
            size=(32, 48),
            window=window,
            steps=4,
            sampler=sampler,
            guidance=6.0,
            projection=Projection(parallel=1.0, momentum=WEIGHT),
            callback=lambda step, seen=seen: seen.append(step.x),
        )
        latents[window] = seen[-1]
    torch.testing.assert_close(latents[16], latents[0], atol=1e-4, rtol=1e-4)


def sums(name: str, steps: int, jumps: tuple[int, int] | None = None) -> list[float]:
    """The momentum's sum after each step, where every guidance difference is 1."""
    schedule = build_schedule(ScaledLinearConfig())
    trajectory, found = Trajectory(), []
    momentum = trajectory.momentum(WEIGHT)
    assert momentum is not None
    one = torch.ones(1, 2, dtype=torch.float64)
    denoise = classifier_free(lambda x, t: x, lambda x, t: (x + one, x), 3.0, combine=Projected(1.0, momentum=momentum))
    times = build_grid(GridConfig(kind="trailing"), schedule, steps)
    sampler = build_sampler(SAMPLERS[name].config())  # type: ignore[arg-type]
    if jumps is not None:
        sampler = KnownRegion(sampler, one, one)
        times = with_jumps(times, *jumps)

    def after(step: object) -> None:
        found.append(float("nan") if momentum.sum is None else float(momentum.sum[0, 0]))

    noise = torch.randn(1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sample(sampler, schedule, denoise, 0 * one, times, lambda shape: noise, after, trajectory.begin_step)
    return found


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_sum_advances_once_a_step_however_often_a_sampler_calls(name: str) -> None:
    assert sums(name, 4) == pytest.approx([1.0, 0.5, 0.75, 0.625])


def test_going_back_up_begins_anew() -> None:
    assert [value for value in sums("ddim", 2, (2, 2)) if value == value] == pytest.approx([1.0, 0.5, 1.0, 0.5])
