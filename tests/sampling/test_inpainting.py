"""Known regions, jumps back up, and inversion."""

import pytest
import torch

from oracles import gaussian, no_noise, three_hills
from sfumato.diffusion.process import add_noise
from sfumato.diffusion.schedule import FlowConfig, ScaledLinearConfig, build_schedule
from sfumato.errors import UserError
from sfumato.rng import SampleNoise
from sfumato.sampling.ancestral import DDIM, DDPM
from sfumato.sampling.dpm_solver import DPM2M, DPM3M
from sfumato.sampling.grids import GridConfig, build_grid
from sfumato.sampling.inpainting import KnownRegion, with_jumps
from sfumato.sampling.inversion import invert, slerp
from sfumato.sampling.loop import sample
from sfumato.sampling.plms import PLMS

LINEAR = build_schedule(ScaledLinearConfig())
SHAPE = (2, 3, 4, 6)


def tensors(n, shape=SHAPE):
    g = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(n)]


def keep_left():
    keep = torch.zeros(2, 1, 4, 6, dtype=torch.float64)
    keep[..., :3] = 1
    return keep


def noise(seeds=(0, 1)):
    sample_noise = SampleNoise(seeds)
    return lambda shape: sample_noise(shape, torch.float64)


@pytest.mark.parametrize("inner", [DDIM(), DDIM(0.7), DDPM(), PLMS(), DPM2M(), DPM3M()], ids=repr)
def test_the_kept_region_ends_as_the_known_latent(inner):
    x, known = tensors(2)
    keep = keep_left()
    grid = build_grid(GridConfig(kind="leading", end="clean"), LINEAR, 20)
    sampler = KnownRegion(inner, known, keep, ends_clean=True)
    found = sample(sampler, LINEAR, gaussian(LINEAR, 0.0, 1.0), x, grid, noise())
    torch.testing.assert_close(found * keep, known * keep)
    free = sample(inner, LINEAR, gaussian(LINEAR, 0.0, 1.0), x, grid, noise())
    assert (found - free)[..., :3].abs().max() > 0.1
    if inner in (DDIM(), PLMS()):  # positions are independent and no noise is taken inside: the rest is untouched
        torch.testing.assert_close(found[..., 3:], free[..., 3:])


def test_keeping_nothing_changes_nothing():
    x, known = tensors(2)
    grid = build_grid(GridConfig(kind="leading"), LINEAR, 10)
    nothing = KnownRegion(DPM2M(), known, torch.zeros(2, 1, 4, 6))
    found = sample(nothing, LINEAR, gaussian(LINEAR, 0.0, 0.5), x, grid, noise())
    torch.testing.assert_close(found, sample(DPM2M(), LINEAR, gaussian(LINEAR, 0.0, 0.5), x, grid, no_noise))


def test_the_kept_region_is_noised_to_the_level_of_the_step():
    seen = []
    _, known = tensors(2)
    grid = build_grid(GridConfig(kind="leading"), LINEAR, 5)

    def denoise(x, t):
        seen.append((x, t))
        return torch.zeros_like(x)

    noises = iter(torch.ones(20, *SHAPE, dtype=torch.float64))
    sample(KnownRegion(DDIM(), known, keep_left()), LINEAR, denoise, tensors(1)[0], grid, lambda s: next(noises))
    for x, t in seen:
        expected = add_noise(LINEAR, known, torch.ones(SHAPE, dtype=torch.float64), t)
        torch.testing.assert_close((x * keep_left()), expected * keep_left())


def test_jumps_repeat_each_stretch():
    grid = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0], dtype=torch.float64)
    assert with_jumps(grid, 2, 1).tolist() == grid.tolist()
    path = [1.0, 0.8, 0.6, 0.8, 1.0, 0.8, 0.6, 0.4, 0.2, 0.4, 0.6, 0.4, 0.2, 0.0, 0.2, 0.0]
    assert with_jumps(grid, 2, 2).tolist() == path
    assert with_jumps(grid, 1, 3).tolist()[:7] == [1.0, 0.8, 1.0, 0.8, 1.0, 0.8, 0.6]
    for wrong in [(0, 2), (2, 0)]:
        with pytest.raises(UserError, match="at least 1"):
            with_jumps(grid, *wrong)


@pytest.mark.parametrize("config", [ScaledLinearConfig(), FlowConfig()], ids=repr)
def test_jumping_up_is_the_forward_process(config):
    schedule = build_schedule(config)
    t, later = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    x0, before, fresh = tensors(3)
    sampler = KnownRegion(DPM2M(), x0, keep_left())
    x_t = add_noise(schedule, x0, before, t)
    up, state = sampler.step(gaussian(schedule, 0, 1), schedule, x_t, t, later, "old memory", lambda s: fresh)
    assert state == DPM2M().init()
    alpha, sigma = schedule(later)
    carried = (up - alpha * x0 - (up - alpha / schedule(t)[0] * x_t)) / before  # what is left of the first noise
    rest = (up - alpha / schedule(t)[0] * x_t) / fresh
    torch.testing.assert_close(carried**2 + rest**2, sigma.square().expand(SHAPE))


def test_jumps_teach_the_hole_about_the_known_half():
    """Both coordinates are equal in the data: with one known, resampling makes the other follow."""
    points = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)

    def denoise(x_t, t):
        alpha, sigma = (float(v) for v in LINEAR(t))
        share = torch.softmax(-(x_t[:, None] - alpha * points).square().sum(-1) / (2 * sigma**2), -1)
        return share @ points

    n = 64
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    known, keep = torch.ones(n, 2, dtype=torch.float64), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    grid = build_grid(GridConfig(kind="trailing"), LINEAR, 20)
    sampler = KnownRegion(DDPM(), known, keep)

    def agreement(path):
        return (sample(sampler, LINEAR, denoise, x, path, noise(range(n)))[:, 1] > 0).double().mean()

    plain, repeated = agreement(grid), agreement(with_jumps(grid, 2, 4))
    assert repeated > 0.95
    assert repeated >= plain


@pytest.mark.parametrize("end", ["clean", "first-index"])
def test_inversion_finds_the_noise_that_ddim_came_from(end):
    grid = build_grid(GridConfig(kind="trailing", end=end), LINEAR, 60)
    denoise, (x,) = three_hills(LINEAR), tensors(1, (16, 2))
    latent = sample(DDIM(), LINEAR, denoise, x, grid, no_noise)

    def back(refinements):
        noise_again = invert(denoise, LINEAR, latent, grid, refinements)
        return (sample(DDIM(), LINEAR, denoise, noise_again, grid, no_noise) - latent).abs().mean()

    rough = back(0)
    assert rough < 0.1
    assert back(3) < rough / 4
    assert back(40) < 1e-5


def test_inversion_of_gaussian_data_converges_to_the_closed_form():
    from oracles import gaussian_flow

    (x,) = tensors(1, (16, 2))
    denoise = gaussian(LINEAR, 0.4, 0.6)
    found = []
    for steps in [100, 200]:
        grid = build_grid(GridConfig(kind="trailing", end="first-index"), LINEAR, steps)
        exact = gaussian_flow(LINEAR, 0.4, 0.6, x, grid[-1], grid[0])
        found.append((invert(denoise, LINEAR, x, grid) - exact).abs().max())
    assert found[1] < 0.6 * found[0] < 0.2
    with pytest.raises(UserError, match="refinements"):
        invert(denoise, LINEAR, x, grid, refinements=-1)


def test_inversion_from_pure_noise_is_exact_too():
    """Where alpha(1) = 0 no noise can be read off x_1: the clean latent's share is taken off instead."""
    flow = build_schedule(FlowConfig())
    grid = build_grid(GridConfig(kind="trailing", end="first-index"), flow, 40)
    denoise, (x,) = three_hills(flow), tensors(1, (16, 2))
    latent = sample(DDIM(), flow, denoise, x, grid, no_noise)
    found = [sample(DDIM(), flow, denoise, invert(denoise, flow, latent, grid, n), grid, no_noise) for n in (0, 30)]
    assert (found[1] - latent).abs().max() < 1e-4 < (found[0] - latent).abs().max()


def test_slerp_keeps_the_length_of_noise():
    a, b = (torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b, rtol=1e-4, atol=1e-5)
    middle = slerp(a, b, 0.5)
    assert (middle.std() - 1).abs() < 0.05
    assert ((a + b) / 2).std() < 0.8
    per_sample = slerp(a, b, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(per_sample[0], a[0])
    torch.testing.assert_close(per_sample[1], b[1], rtol=1e-4, atol=1e-5)


def test_slerp_of_parallel_and_unit_vectors():
    a = torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(slerp(a, 3 * a, 0.5), 2 * a)
    diagonal = slerp(a, torch.tensor([[0.0, 1.0]]), 0.5)
    torch.testing.assert_close(diagonal, torch.full((1, 2), 0.5**0.5))
