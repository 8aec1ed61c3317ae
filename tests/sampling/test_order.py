"""Each deterministic solver's measured order of convergence, with denoisers known in closed form.

The error against the exact solution is halved order times when the steps are doubled. Slopes are fitted over several
doublings, in the range where neither rounding nor the first steps dominate.
"""

import math
from functools import lru_cache

import pytest
import torch

from oracles import gaussian, gaussian_flow, no_noise, three_hills
from sfumato.diffusion.prediction import PredictionKind, convert, to_x0
from sfumato.diffusion.schedule import (
    CosineConfig,
    FlowConfig,
    LinearConfig,
    ScaledLinearConfig,
    Schedule,
    SigmoidConfig,
    SqrtConfig,
    build_schedule,
)
from sfumato.sampling.ancestral import DDIM
from sfumato.sampling.dpm_solver import DPM2M, DPM2MSDE, DPM2S, DPM3M
from sfumato.sampling.grids import GridConfig, build_grid
from sfumato.sampling.heun import EDM, Euler, Heun
from sfumato.sampling.loop import sample
from sfumato.sampling.plms import PLMS
from sfumato.sampling.table import SAMPLERS, build_sampler
from sfumato.sampling.unipc import UniPC

# sampler, lowest and highest slope on the lambda grid
SOLVERS = {
    "ddim": (DDIM(), 0.9, 1.15),
    "euler": (Euler(), 0.9, 1.15),
    "heun": (Heun(), 1.9, 2.3),
    "edm without churn": (EDM(churn=0.0), 1.9, 2.3),
    "dpmpp-2m": (DPM2M(), 1.9, 2.2),
    "dpmpp-2m-sde without noise": (DPM2MSDE(eta=0.0), 1.9, 2.2),
    "dpmpp-2s": (DPM2S(), 1.85, 2.2),
    "dpmpp-3m": (DPM3M(), 2.8, 3.6),
    "unipc of order 1": (UniPC(1), 1.85, 2.2),
    "unipc of order 2": (UniPC(2), 2.8, 3.3),
    "unipc of order 3": (UniPC(3), 3.2, 4.6),
}
STEPS = [20, 40, 80, 160]


def start(n: int = 32) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def lambda_grid(schedule: Schedule, steps: int) -> torch.Tensor:
    return build_grid(GridConfig(kind="log-snr"), schedule, steps)


def even_grid(schedule: Schedule, steps: int) -> torch.Tensor:
    """Evenly spaced continuous times, ending where sigma is still positive."""
    return torch.linspace(1, 0.02, steps + 1, dtype=torch.float64)


@lru_cache
def reference(config: ScaledLinearConfig | FlowConfig, even: bool = False) -> torch.Tensor:
    schedule = build_schedule(config)
    grid = (even_grid if even else lambda_grid)(schedule, 600)
    return sample(UniPC(3), schedule, three_hills(schedule), start(), grid, no_noise)


def slope(errors: list[float]) -> float:
    """Least-squares slope of log2(error) over the doublings."""
    y = torch.tensor([math.log2(e) for e in errors])
    x = torch.arange(len(errors), dtype=torch.float32)
    return -(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


def errors(sampler, config, even=False):
    schedule = build_schedule(config)
    denoise = three_hills(schedule)
    grid = even_grid if even else lambda_grid
    found = [sample(sampler, schedule, denoise, start(), grid(schedule, n), no_noise) for n in STEPS]
    return [(x - reference(config, even)).abs().mean().item() for x in found]


@pytest.mark.parametrize("name", SOLVERS)
def test_order_on_a_mixture(name):
    sampler, lowest, highest = SOLVERS[name]
    measured = slope(errors(sampler, ScaledLinearConfig()))
    assert lowest < measured < highest, f"{name} converges with order {measured:.2f}"


@pytest.mark.parametrize(
    ("name", "lowest"),
    [
        ("ddim", 0.9),
        ("heun", 1.85),
        ("dpmpp-2m", 1.85),
        ("dpmpp-2s", 1.85),
        ("dpmpp-3m", 2.4),
        ("unipc of order 2", 2.6),
    ],
)
@pytest.mark.parametrize("config", [FlowConfig(), ScaledLinearConfig(zero_terminal_snr=True)], ids=repr)
def test_order_is_kept_from_pure_noise(name, lowest, config):
    """Where alpha(1) = 0 the first step has no finite length in lambda."""
    assert slope(errors(SOLVERS[name][0], config)) > lowest


KINDS: tuple[PredictionKind, ...] = ("eps", "x0", "v", "flow")
SCHEDULES = {
    "scaled-linear": ScaledLinearConfig(),
    "linear": LinearConfig(),
    "sqrt": SqrtConfig(),
    "cosine": CosineConfig(),
    "sigmoid": SigmoidConfig(),
    "zero terminal": ScaledLinearConfig(zero_terminal_snr=True),
    "flow": FlowConfig(),
}
EVERY_STEPS = [24, 48]
POINTS = 5


def inner_grid(schedule: Schedule, steps: int) -> torch.Tensor:
    """Uniform in lambda between two levels that every schedule has, away from both infinite ends."""
    log_snrs = torch.linspace(-2.5, 3.0, steps + 1, dtype=torch.float64)
    return schedule.time_of_log_snr(log_snrs)


def by_every_kind(schedule: Schedule, denoise):
    """The denoise function of networks that predict eps, x0, v and flow: a share of the batch (4 · N, ...) by each."""

    def denoise_all(x_t, t):
        alpha, sigma = schedule(t)
        x0 = denoise(x_t, t)
        found = [
            to_x0(kind, convert("x0", kind, part, x, alpha, sigma), x, alpha, sigma)
            for kind, part, x in zip(KINDS, x0.chunk(4), x_t.chunk(4), strict=True)
        ]
        return torch.cat(found)

    return denoise_all


@lru_cache
def inner_reference(name: str) -> torch.Tensor:
    schedule = build_schedule(SCHEDULES[name])
    grid = inner_grid(schedule, 300)
    return sample(UniPC(3), schedule, three_hills(schedule), start(POINTS), grid, no_noise)


@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize("name", [*SOLVERS, "plms"])
def test_order_in_every_prediction_kind_on_every_schedule(name, schedule_name):
    """On the mixture; the kinds run side by side in one batch, and each must converge with the stated order."""
    sampler, lowest, highest = (PLMS(), 0.9, 4.3) if name == "plms" else SOLVERS[name]
    schedule = build_schedule(SCHEDULES[schedule_name])
    denoise = by_every_kind(schedule, three_hills(schedule))
    errors_of = {kind: [] for kind in KINDS}
    for steps in EVERY_STEPS:
        found = sample(sampler, schedule, denoise, start(POINTS).repeat(4, 1), inner_grid(schedule, steps), no_noise)
        for kind, part in zip(KINDS, found.chunk(4), strict=True):
            errors_of[kind].append((part - inner_reference(schedule_name)).abs().mean().item())
    slopes = {kind: slope(values) for kind, values in errors_of.items()}
    assert all(lowest < s < highest + 0.4 for s in slopes.values()), slopes


@pytest.mark.parametrize("name", [*SOLVERS, "plms"])
@pytest.mark.parametrize("schedule_name", ["cosine", "flow"])
def test_a_gaussian_is_solved_in_every_prediction_kind(name, schedule_name):
    schedule = build_schedule(SCHEDULES[schedule_name])
    sampler = PLMS() if name == "plms" else SOLVERS[name][0]
    x, grid = start(POINTS).repeat(4, 1), inner_grid(schedule, 40)
    found = sample(sampler, schedule, by_every_kind(schedule, gaussian(schedule, 0.4, 0.6)), x, grid, no_noise)
    exact = gaussian_flow(schedule, 0.4, 0.6, x, grid[0], grid[-1])
    tolerance = 6e-2 if name in ("ddim", "euler", "plms") else 1e-2
    torch.testing.assert_close(found, exact, rtol=0, atol=tolerance)


def test_plms_order_on_even_times():
    """Adams-Bashforth of fourth order for even steps, but steps that are even in t are not in sigma / alpha."""
    assert 2.2 < slope(errors(PLMS(), ScaledLinearConfig(), even=True)) < 3.2


def test_plms_beats_ddim_on_the_papers_grid():
    schedule = build_schedule(ScaledLinearConfig())
    grid = build_grid(GridConfig(kind="leading"), schedule, 50)
    fine = torch.linspace(float(grid[0]), float(grid[-1]), 601, dtype=torch.float64)
    exact = sample(UniPC(3), schedule, three_hills(schedule), start(), fine, no_noise)
    plms, ddim = (
        (sample(s, schedule, three_hills(schedule), start(), grid, no_noise) - exact).abs().mean()
        for s in (PLMS(), DDIM())
    )
    assert plms < ddim / 5


@pytest.mark.parametrize("name", [*SOLVERS, "plms"])
@pytest.mark.parametrize("std", [0.0, 0.6])
def test_gaussian_data_is_solved_to_the_closed_form(name, std):
    """std 0 (one point) is exact in any number of steps, since the expected clean latent never changes."""
    schedule = build_schedule(ScaledLinearConfig())
    sampler = PLMS() if name == "plms" else SOLVERS[name][0]
    grid = even_grid(schedule, 3 if std == 0 else 200)
    found = sample(sampler, schedule, gaussian(schedule, 0.4, std), start(), grid, no_noise)
    exact = gaussian_flow(schedule, 0.4, std, start(), grid[0], grid[-1])
    tolerance = 1e-11 if std == 0 else 2e-2 if name in ("ddim", "euler") else 3e-3
    torch.testing.assert_close(found, exact, rtol=0, atol=tolerance)


def test_twenty_steps_on_the_lambda_grid_beat_ddim_with_a_hundred():
    schedule = build_schedule(ScaledLinearConfig())
    exact = reference(ScaledLinearConfig())
    x, denoise = start(), three_hills(schedule)
    multistep = sample(DPM2M(), schedule, denoise, x, lambda_grid(schedule, 20), no_noise)
    trailing = build_grid(GridConfig(kind="trailing"), schedule, 100)
    ddim = sample(DDIM(), schedule, denoise, x, trailing, no_noise)
    assert (multistep - exact).abs().mean() < (ddim - exact).abs().mean()


def test_the_table_states_the_measured_orders_and_calls():
    schedule = build_schedule(ScaledLinearConfig())
    for kind, facts in SAMPLERS.items():
        calls = []

        def denoise(x, t, calls=calls):
            calls.append(t)
            return gaussian(schedule, 0.0, 1.0)(x, t)

        sampler = build_sampler(facts.config())
        grid = even_grid(schedule, 10)
        sample(sampler, schedule, denoise, start(3), grid, lambda shape: torch.zeros(tuple(shape), dtype=torch.float64))
        assert len(calls) == 10 * facts.calls + (kind == "plms"), kind
        if facts.order is not None and kind != "plms":
            assert abs(slope(errors(sampler, ScaledLinearConfig())) - facts.order) < 0.45, kind
