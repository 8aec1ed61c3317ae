"""Stochastic samplers, without a single random number: on Gaussian data every step is linear, so its moments are exact.

A step is probed with x and noise at 0 and 1: x_s = A x_t + b + C noise. For data that are one point, the expected clean
latent is that point whatever x_t, and each sampler must then keep the forward process' marginals exactly:
x_s ~ N(alpha_s · point, sigma_s²), at every step and for any spacing.
"""

from itertools import pairwise

import pytest
import torch

from oracles import gaussian, no_noise
from sfumato.diffusion.schedule import CosineConfig, FlowConfig, ScaledLinearConfig, build_schedule
from sfumato.sampling.ancestral import DDIM, DDPM
from sfumato.sampling.dpm_solver import DPM2MSDE
from sfumato.sampling.grids import GridConfig, build_grid
from sfumato.sampling.heun import EDM
from sfumato.sampling.sampler import level

STOCHASTIC = {
    "ddpm": DDPM(),
    "ddim 0.4": DDIM(0.4),
    "ddim 1": DDIM(1.0),
    "dpmpp-2m-sde 0.5": DPM2MSDE(0.5),
    "dpmpp-2m-sde 1": DPM2MSDE(1.0),
    "edm": EDM(churn=0.4, churn_min=0.0, churn_max=1e4, noise_scale=1.0),
}


def moments(sampler, schedule, mean, std, grid):
    """(time, mean, variance) of x after every step, for data N(mean, std²), starting from x's true distribution.

    The latent holds, per sample, the response to one cause: row 0 none (the mean), row 1 + k the k-th noise.
    """
    denoise = gaussian(schedule, mean, std)
    first = level(schedule, grid[0])
    x = torch.full((len(grid) + 1, 1), first.alpha * mean, dtype=torch.float64)
    x[1] += ((first.alpha * std) ** 2 + first.sigma**2) ** 0.5  # the noise x starts from
    used = [1]

    def noise(shape):
        used[0] += 1
        unit = torch.zeros(tuple(shape), dtype=torch.float64)
        unit[used[0]] = 1.0
        return unit

    state = sampler.init()
    for t, s in pairwise(grid):
        x, state = sampler.step(denoise, schedule, x, t, s, state, noise)
        yield s, x[0, 0], (x[1:, 0] - x[0, 0]).square().sum()


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("kind", ["trailing", "log-snr"])
@pytest.mark.parametrize(
    "config", [ScaledLinearConfig(), FlowConfig(), ScaledLinearConfig(zero_terminal_snr=True)], ids=repr
)
def test_a_single_points_marginals_are_kept_exactly(name, kind, config):
    schedule = build_schedule(config)
    grid = build_grid(GridConfig(kind=kind), schedule, 7)
    for s, mean, variance in moments(STOCHASTIC[name], schedule, 0.7, 0.0, grid):
        point = level(schedule, s)
        assert mean.item() == pytest.approx(0.7 * point.alpha, rel=1e-10, abs=1e-10)
        assert variance.item() == pytest.approx(point.sigma**2, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_gaussian_data_come_out_with_their_variance(name):
    """The error falls with the number of steps and is small with many."""
    schedule = build_schedule(CosineConfig())
    found = []
    for steps in [25, 200]:
        grid = build_grid(GridConfig(kind="trailing"), schedule, steps)
        *_, (_, mean, variance) = moments(STOCHASTIC[name], schedule, 0.5, 0.6, grid)
        assert abs(mean - 0.5) < 0.02
        found.append(abs(variance / 0.36 - 1))
    assert found[1] < 0.05
    assert found[1] < found[0] / 2


def test_ddpm_over_every_step_is_within_three_percent():
    schedule = build_schedule(ScaledLinearConfig())
    grid = build_grid(GridConfig(kind="trailing"), schedule, 1000)
    *_, (_, mean, variance) = moments(DDPM(), schedule, 0.5, 0.6, grid)
    assert abs(mean - 0.5) < 0.001
    assert abs(variance / 0.36 - 1) < 0.03


def test_ddim_with_eta_one_is_ddpm():
    schedule = build_schedule(ScaledLinearConfig())
    grid = build_grid(GridConfig(kind="trailing"), schedule, 9)
    for ddim, ddpm in zip(*(moments(s, schedule, 0.5, 0.6, grid) for s in (DDIM(1.0), DDPM())), strict=True):
        torch.testing.assert_close(ddim, ddpm, rtol=1e-10, atol=1e-12)


def test_the_forward_variance_is_the_larger_one():
    schedule = build_schedule(ScaledLinearConfig())
    grid = build_grid(GridConfig(kind="trailing"), schedule, 20)
    small, large = (list(moments(DDPM(v), schedule, 0.0, 0.6, grid))[-1][2] for v in ("posterior", "forward"))
    assert small < large


def test_temperature_scales_the_noise():
    schedule = build_schedule(ScaledLinearConfig())
    t, s = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    denoise = gaussian(schedule, 0.0, 1.0)
    x = torch.zeros(2, 3, dtype=torch.float64)
    for kind in [DDPM, DDIM]:
        options = {"eta": 1.0} if kind is DDIM else {}
        full, half = (
            kind(temperature=temperature, **options).step(denoise, schedule, x, t, s, None, lambda n: torch.ones(*n))[0]
            for temperature in (1.0, 0.5)
        )
        torch.testing.assert_close(half, 0.5 * full)
        kind(temperature=0.0, **options).step(denoise, schedule, x, t, s, None, no_noise)
