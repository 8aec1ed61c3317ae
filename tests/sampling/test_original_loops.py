"""The original's DDIM, PLMS and DDPM loops, written out by index with noise predictions, against ours.

The model here is an arbitrary function of x and the integer index, so any slip in times, orders or weights shows.
"""

import pytest
import torch

from parity import golden, needs_parity
from sfumato.diffusion.prediction import to_x0
from sfumato.diffusion.process import network_time, time_of_index
from sfumato.diffusion.schedule import ScaledLinearConfig, build_schedule
from sfumato.sampling.ancestral import DDIM, DDPM
from sfumato.sampling.grids import GridConfig, build_grid
from sfumato.sampling.inpainting import KnownRegion
from sfumato.sampling.loop import sample
from sfumato.sampling.plms import PLMS

T = 1000
SCHEDULE = build_schedule(ScaledLinearConfig())
ABAR = torch.cumprod(1 - torch.linspace(0.0015**0.5, 0.0195**0.5, T, dtype=torch.float64) ** 2, 0)
SHAPE = (2, 3, 5, 7)


def model(x, index):
    return torch.tanh(1.3 * x + 0.002 * index) - 0.4 * x.roll(1, -1)


def denoise(x, t):
    index = network_time(t, T)
    alpha, sigma = SCHEDULE(t)
    return to_x0("eps", model(x, index), x, alpha, sigma)


def noises(n):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(11), dtype=torch.float64)


def indices(steps):
    return list(range(1, T, T // steps))[::-1]


def previous(i, path):
    return ABAR[path[i + 1]] if i + 1 < len(path) else ABAR[0]


def ddim_move(x, e, a, a_prev, eta=0.0, noise=0.0, project=None):
    sigma = eta * ((1 - a_prev) / (1 - a) * (1 - a / a_prev)) ** 0.5
    x0 = (x - (1 - a) ** 0.5 * e) / a**0.5
    x0 = x0 if project is None else project(x0)
    return a_prev**0.5 * x0 + (1 - a_prev - sigma**2) ** 0.5 * e + sigma * noise


def q_sample(x0, i, noise):
    return ABAR[i] ** 0.5 * x0 + (1 - ABAR[i]) ** 0.5 * noise


def leading(steps):
    return build_grid(GridConfig(kind="leading"), SCHEDULE, steps)


@pytest.mark.parametrize("steps", [1, 2, 10, 50])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("project", [None, torch.round])
def test_ddim(steps, eta, project):
    x, noise, path = noises(1)[0], noises(steps), indices(steps)
    for i, index in enumerate(path):
        x = ddim_move(x, model(x, index), ABAR[index], previous(i, path), eta, noise[i], project)
    supply = iter(noise)
    ours = sample(DDIM(eta, project=project), SCHEDULE, denoise, noises(1)[0], leading(steps), lambda s: next(supply))
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def plms_loop(x, path, before=lambda x, index: x, project=None):
    memory = []
    for i, index in enumerate(path):
        x = before(x, index)
        a, a_prev = ABAR[index], previous(i, path)
        e = model(x, index)
        if not memory:
            after = path[min(i + 1, len(path) - 1)]
            used = (e + model(ddim_move(x, e, a, a_prev, project=project), after)) / 2
        elif len(memory) == 1:
            used = (3 * e - memory[-1]) / 2
        elif len(memory) == 2:
            used = (23 * e - 16 * memory[-1] + 5 * memory[-2]) / 12
        else:
            used = (55 * e - 59 * memory[-1] + 37 * memory[-2] - 9 * memory[-3]) / 24
        memory.append(e)
        x = ddim_move(x, used, a, a_prev, project=project)
    return x


@pytest.mark.parametrize("steps", [2, 4, 10, 50])
@pytest.mark.parametrize("project", [None, torch.round])
def test_plms(steps, project):
    expected = plms_loop(noises(1)[0], indices(steps), project=project)
    calls = []

    def counted(x, t):
        calls.append(t)
        return denoise(x, t)

    ours = sample(PLMS(project), SCHEDULE, counted, noises(1)[0], leading(steps), noises)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    assert len(calls) == steps + 1


def ancestral_loop(x, count, noise, after=lambda x, index: x):
    for index in range(count - 1, -1, -1):
        before = ABAR[index - 1] if index else torch.tensor(1.0, dtype=torch.float64)
        beta = 1 - ABAR[index] / before
        x0 = (x - (1 - ABAR[index]) ** 0.5 * model(x, index)) / ABAR[index] ** 0.5
        mean = beta * before**0.5 / (1 - ABAR[index]) * x0
        mean = mean + (1 - before) * (ABAR[index] / before) ** 0.5 / (1 - ABAR[index]) * x
        x = mean + (beta * (1 - before) / (1 - ABAR[index])) ** 0.5 * (next(noise) if index else 0)
        x = after(x, index)
    return x


def ancestral_grid(count):
    return time_of_index(torch.arange(count - 1, -2, -1), T)


def test_ddpm():
    expected = ancestral_loop(noises(1)[0], 12, iter(noises(12)))
    supply = iter(noises(12))
    ours = sample(DDPM(), SCHEDULE, denoise, noises(1)[0], ancestral_grid(12), lambda s: next(supply))
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-8)


def test_inpainting_blends_in_the_originals_order():
    known, keep = noises(3)[2], (noises(4)[3][:, :1] > 0).double()

    def blend(supply):
        return lambda x, index: keep * q_sample(known, index, next(supply)) + (1 - keep) * x

    supply = iter(noises(40))
    expected = plms_loop(noises(1)[0], indices(10), before=blend(supply))
    supply = iter(noises(40))
    wrapped = KnownRegion(PLMS(), known, keep)
    ours = sample(wrapped, SCHEDULE, denoise, noises(1)[0], leading(10), lambda s: next(supply))
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)

    supply = iter(noises(40))
    expected = ancestral_loop(noises(1)[0], 12, supply, after=blend(supply))
    supply = iter(noises(40))
    wrapped = KnownRegion(DDPM(), known, keep, order="after")
    ours = sample(wrapped, SCHEDULE, denoise, noises(1)[0], ancestral_grid(12), lambda s: next(supply))
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-8)


@needs_parity
def test_levels_and_noise_of_the_recorded_ddim_run():
    tensors = golden("ffhq256")
    grid = leading(5)
    torch.testing.assert_close(network_time(grid[:-1], T).long().flip(0), tensors["ddim/timesteps"])
    alpha, sigma = SCHEDULE(grid)
    torch.testing.assert_close(alpha[:-1].square().flip(0).float(), tensors["ddim/alphas"])
    torch.testing.assert_close(alpha[1:].square().flip(0), tensors["ddim/alphas_prev"], rtol=1e-6, atol=0)
    torch.testing.assert_close(sigma[:-1].flip(0).float(), tensors["ddim/sqrt_one_minus_alphas"])
    ones = torch.ones(1, 1, dtype=torch.float64)
    for t, s, expected in zip(grid[:-1], grid[1:], tensors["ddim/sigmas_eta1"].flip(0), strict=True):
        still, moved = (
            DDIM(1.0).step(lambda x, t: x, SCHEDULE, ones, t, s, None, lambda n, unit=unit: ones * unit)[0]
            for unit in (0, 1)
        )
        kept = DDIM(1.0).step(lambda x, t: x, SCHEDULE, 0 * ones, t, s, None, lambda n: ones)[0]
        assert kept.item() == pytest.approx(expected.item(), rel=1e-5)
        assert (moved - still).item() == pytest.approx(expected.item(), rel=1e-5)
