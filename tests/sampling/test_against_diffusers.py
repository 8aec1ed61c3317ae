"""Step-for-step agreement with the schedulers of diffusers, in float64, where the definitions coincide.

Their tables are float32 and their coefficients sometimes too: the float64 noise levels are put in from outside, and
where a comparison is looser than 1e-8 it is their arithmetic.
"""

import pytest
import torch

from oracles import no_noise, three_hills
from sfumato.diffusion.process import time_of_index
from sfumato.diffusion.schedule import ScaledLinearConfig, build_schedule
from sfumato.sampling.ancestral import DDIM, DDPM
from sfumato.sampling.dpm_solver import DPM2M, DPM2MSDE, DPM2S, DPM3M
from sfumato.sampling.grids import GridConfig, build_grid
from sfumato.sampling.heun import Euler, Heun
from sfumato.sampling.loop import sample
from sfumato.sampling.plms import PLMS
from sfumato.sampling.sampler import level
from sfumato.sampling.unipc import UniPC

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCHEDULE = build_schedule(ScaledLinearConfig())
DENOISE = three_hills(SCHEDULE)
CLEAN = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195, "prediction_type": "sample"}


def start() -> torch.Tensor:
    return torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def grid_of(steps: int) -> torch.Tensor:
    return build_grid(GridConfig(kind="log-snr"), SCHEDULE, steps)


def theirs(scheduler, grid, steps=None, in_ratio=False):
    """Runs a scheduler of theirs over our times; in_ratio: it works on x / alpha."""
    scheduler.set_timesteps(len(grid) - 1)
    points = [level(SCHEDULE, t) for t in grid]
    scheduler.sigmas = torch.tensor([p.noise_ratio for p in points], dtype=torch.float64)
    x = start() / (points[0].alpha if in_ratio else 1)
    for i in range(len(grid) - 1 if steps is None else steps):
        unit = points[i].alpha if in_ratio else 1
        scheduler.is_scale_input_called = True
        x = scheduler.step(DENOISE(x * unit, grid[i]), scheduler.timesteps[i], x, return_dict=False)[0]
    return x * (points[i + 1].alpha if in_ratio else 1)


@pytest.mark.parametrize(("order", "sampler"), [(1, DDIM()), (1, Euler()), (2, DPM2M())])
def test_dpm_solver_multistep(order, sampler):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(solver_order=order, final_sigmas_type="zero", **CLEAN)
    ours = sample(sampler, SCHEDULE, DENOISE, start(), grid_of(20), no_noise)
    torch.testing.assert_close(ours, theirs(scheduler, grid_of(20)), rtol=0, atol=1e-5)


def test_third_order_multistep_departs_from_theirs_and_is_the_more_accurate():
    """Their weight of the parabola's curvature is half of its integral, which leaves their solver of second order."""
    from diffusers import DPMSolverMultistepScheduler

    exact = sample(UniPC(3), SCHEDULE, DENOISE, start(), grid_of(1500), no_noise)
    their_errors, our_errors = [], []
    for steps in [40, 80, 160]:
        scheduler = DPMSolverMultistepScheduler(solver_order=3, final_sigmas_type="zero", **CLEAN)
        their_errors.append((theirs(scheduler, grid_of(steps)) - exact).abs().mean())
        our_errors.append((sample(DPM3M(), SCHEDULE, DENOISE, start(), grid_of(steps), no_noise) - exact).abs().mean())
    assert their_errors[0] / their_errors[2] < 2**4.6
    assert our_errors[0] / our_errors[2] > 2**5.4
    assert our_errors[2] < their_errors[2] / 5


def test_dpm_solver_singlestep_on_a_grid_with_its_midpoints():
    """Their second-order solver takes every second time of the grid for its intermediate point."""
    from diffusers import DPMSolverSinglestepScheduler

    grid = build_grid(GridConfig(kind="log-snr"), SCHEDULE, 21)[:-1]  # uniform in lambda: 10 steps and their midpoints
    scheduler = DPMSolverSinglestepScheduler(solver_order=2, lower_order_final=False, **CLEAN)
    scheduler.set_timesteps(20)
    scheduler.order_list = [1, 2] * 10
    scheduler.sigmas = torch.tensor([level(SCHEDULE, t).noise_ratio for t in grid], dtype=torch.float64)
    x = start()
    for i in range(20):
        x = scheduler.step(DENOISE(x, grid[i]), scheduler.timesteps[i], x, return_dict=False)[0]
    ours = sample(DPM2S(), SCHEDULE, DENOISE, start(), grid[::2], no_noise)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("scale", ["bh1", "bh2"])
def test_unipc(order, scale):
    """Up to the last steps, where theirs lowers the order of the third-order solver one step earlier."""
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(solver_order=order, solver_type=scale, final_sigmas_type="zero", **CLEAN)
    grid = grid_of(20)
    ours = sample(UniPC(order, scale), SCHEDULE, DENOISE, start(), grid[:18], no_noise)
    torch.testing.assert_close(ours, theirs(scheduler, grid, steps=17), rtol=0, atol=1e-10)


def test_unipc_to_the_end():
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(solver_order=2, solver_type="bh2", final_sigmas_type="zero", **CLEAN)
    ours = sample(UniPC(2), SCHEDULE, DENOISE, start(), grid_of(20), no_noise)
    torch.testing.assert_close(ours, theirs(scheduler, grid_of(20)), rtol=0, atol=1e-10)


def test_euler_and_ddim():
    from diffusers import EulerDiscreteScheduler

    expected = theirs(EulerDiscreteScheduler(**CLEAN), grid_of(20), in_ratio=True)
    for sampler in [Euler(), DDIM()]:
        ours = sample(sampler, SCHEDULE, DENOISE, start(), grid_of(20), no_noise)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_heun():
    from diffusers import HeunDiscreteScheduler

    grid = grid_of(12)
    points = [level(SCHEDULE, t) for t in grid]
    # Theirs knows no clean-latent prediction: it is given the noise, and takes each inner time twice.
    scheduler = HeunDiscreteScheduler(**{**CLEAN, "prediction_type": "epsilon"})
    scheduler.set_timesteps(12)
    ratios = torch.tensor([p.noise_ratio for p in points], dtype=torch.float64)
    inner = ratios[1:-1].repeat_interleave(2)
    scheduler.sigmas = torch.cat([ratios[:1], inner, ratios[-1:]])
    visits = [grid[0], *grid[1:-1].repeat_interleave(2)]
    x = start() / points[0].alpha
    for t, timestep in zip(visits, scheduler.timesteps, strict=True):
        p = level(SCHEDULE, t)
        eps = (x - DENOISE(x * p.alpha, t)) / p.noise_ratio
        x = scheduler.step(eps, timestep, x, return_dict=False)[0]
    ours = sample(Heun(), SCHEDULE, DENOISE, start(), grid, no_noise)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-9)


def test_sde_dpm_solver():
    from diffusers import DPMSolverMultistepScheduler

    noises = torch.randn(20, 8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scheduler = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", final_sigmas_type="zero", **CLEAN)
    grid = grid_of(20)
    scheduler.set_timesteps(20)
    scheduler.sigmas = torch.tensor([level(SCHEDULE, t).noise_ratio for t in grid], dtype=torch.float64)
    x = start()
    for i in range(20):
        step = scheduler.step(
            DENOISE(x, grid[i]), scheduler.timesteps[i], x, variance_noise=noises[i], return_dict=False
        )
        x = step[0].double()
    supply = iter(noises)
    ours = sample(DPM2MSDE(), SCHEDULE, DENOISE, start(), grid, lambda shape: next(supply))
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_on_their_trailing_grid(eta):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        **CLEAN, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True, rescale_betas_zero_snr=False
    )
    scheduler.alphas_cumprod = SCHEDULE.alphas_cumprod
    scheduler.set_timesteps(10)
    grid = build_grid(GridConfig(kind="trailing"), SCHEDULE, 10)
    times = time_of_index(scheduler.timesteps, 1000)
    torch.testing.assert_close(times, grid[:-1])
    noises = torch.randn(10, 8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = start()
    for i, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(
            DENOISE(x, times[i]), timestep, x, eta=eta, variance_noise=noises[i] if eta else None, return_dict=False
        )[0]
    supply = iter(noises)
    ours = sample(DDIM(eta), SCHEDULE, DENOISE, start(), grid, lambda shape: next(supply))
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-9)


def test_ddpm_over_every_step():
    """On the last forty of a thousand steps; their noise is generated by the step itself, so means are compared."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(**CLEAN, clip_sample=False, variance_type="fixed_small")
    scheduler.alphas_cumprod = SCHEDULE.alphas_cumprod
    grid = time_of_index(torch.arange(39, -2, -1), 1000)
    x = ours = start()
    for i in range(40):
        seed = torch.Generator().manual_seed(i)
        x = scheduler.step(DENOISE(x, grid[i]), 39 - i, x, generator=seed, return_dict=False)[0]

        def noise(shape, i=i):
            return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(i), dtype=torch.float64)

        ours, _ = DDPM().step(DENOISE, SCHEDULE, ours, grid[i], grid[i + 1], None, noise)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-8)


def test_plms_is_pndm_without_its_runge_kutta_start():
    """With the offset and the end of the original: theirs visits the second time twice for the first step's average."""
    from diffusers import PNDMScheduler

    options = {**CLEAN, "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1}
    scheduler = PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **options)
    scheduler.alphas_cumprod = SCHEDULE.alphas_cumprod
    scheduler.final_alpha_cumprod = SCHEDULE.alphas_cumprod[0]
    scheduler.set_timesteps(10)
    x = start()
    for timestep in scheduler.timesteps:
        t = time_of_index(timestep, 1000)
        point = level(SCHEDULE, t)
        eps = (x - point.alpha * DENOISE(x, t)) / point.sigma
        x = scheduler.step(eps, int(timestep), x, return_dict=False)[0]
    grid = build_grid(GridConfig(kind="leading"), SCHEDULE, 10)
    torch.testing.assert_close(sample(PLMS(), SCHEDULE, DENOISE, start(), grid, no_noise), x, rtol=0, atol=1e-9)
