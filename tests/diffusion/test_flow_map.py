"""Flow maps: the change of variables, the two losses, and small students against closed forms."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from oracles import gaussian, gaussian_flow, no_noise
from sfumato.diffusion.flow_map import (
    MeanVelocity,
    Path,
    adaptive,
    composed_target,
    log_uniform,
    mapped,
    mean_flow_target,
    mean_velocity,
    pseudo_huber,
    total_derivative,
)
from sfumato.diffusion.prediction import target
from sfumato.diffusion.process import add_noise
from sfumato.diffusion.schedule import CosineConfig, FlowConfig, ScaledLinearConfig, build_schedule
from sfumato.errors import UserError
from sfumato.sampling.dpm_solver import DPM2M
from sfumato.sampling.grids import GridConfig, build_grid
from sfumato.sampling.loop import sample

CONFIGS = [
    ScaledLinearConfig(),
    CosineConfig(),
    FlowConfig(),
    ScaledLinearConfig(zero_terminal_snr=True),
]
KINDS = ["eps", "x0", "v", "flow"]
SPREAD = 0.6


def spread(t: Tensor) -> Tensor:
    """Standard deviation of z_t for x ~ N(0, SPREAD²)."""
    return (((1 - t) * SPREAD) ** 2 + t**2).sqrt()


def exact(z: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """The mean velocity of that Gaussian's flow; the velocity itself where r = t."""
    slope = (t - (1 - t) * SPREAD**2) / spread(t) ** 2
    still = (t - r).abs() < 1e-12
    share = torch.where(still, slope, (1 - spread(r) / spread(t)) / torch.where(still, 1.0, t - r))
    return share[:, None] * z


@pytest.mark.parametrize(("config", "kind"), list(itertools.product(CONFIGS, KINDS)), ids=repr)
def test_every_model_has_the_velocity_of_the_straight_path(config, kind):
    schedule = build_schedule(config)
    if kind == "eps" and schedule.zero_terminal:
        with pytest.raises(UserError, match="prediction 'eps' does not determine x0"):
            Path(schedule, kind)
        return
    path = Path(schedule, kind)
    g = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(4, 2, 3, generator=g, dtype=torch.float64) for _ in range(2))
    time = torch.tensor([0.002, 0.3, 0.7, 1.0], dtype=torch.float64)
    x_t, t = add_noise(schedule, x0, noise, time), path.of_time(time)
    prediction = target(kind, x0, noise, *schedule(time))
    torch.testing.assert_close(path.velocity(prediction, x_t, time), noise - x0, rtol=0, atol=1e-7)
    z_t = x_t / path.length(time)[:, None, None]
    torch.testing.assert_close(z_t, (1 - t)[:, None, None] * x0 + t[:, None, None] * noise)
    torch.testing.assert_close(path.to_time(t), time)
    assert path.of_time(0.0) == 0
    assert (path.noisiest == 1) == schedule.zero_terminal


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_a_trajectory_of_any_schedule_is_one_of_the_path(config):
    """For a Gaussian both are known; the solver's points agree with the path's map up to the solver's error."""
    schedule = build_schedule(config)
    path = Path(schedule, "flow")
    g = torch.Generator().manual_seed(1)
    x = torch.randn(8, 1, generator=g, dtype=torch.float64)
    time, s = (torch.tensor(value, dtype=torch.float64) for value in (1.0, 0.2))
    x_s = gaussian_flow(schedule, 0.0, SPREAD, x, time, s)
    z_t, z_s = x / path.length(time), x_s / path.length(s)
    t, r = path.of_time(time).expand(8), path.of_time(s).expand(8)
    torch.testing.assert_close(mean_velocity(z_t, z_s, t, r), exact(z_t, t, r), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mapped(z_t, t, r, exact(z_t, t, r)), z_s, rtol=1e-9, atol=1e-9)

    points = [x]
    grid = build_grid(GridConfig(kind="trailing"), schedule, 64)
    sample(DPM2M(), schedule, gaussian(schedule, 0.0, SPREAD), x, grid, no_noise, lambda step: points.append(step.x))
    i, j = 3, 40
    z_i, z_j = (points[k] / path.length(grid[k]) for k in (i, j))
    t, r = (path.of_time(grid[k]).expand(8) for k in (i, j))
    torch.testing.assert_close(mean_velocity(z_i, z_j, t, r), exact(z_i, t, r), rtol=0, atol=5e-3)


def test_the_central_difference_has_an_error_of_second_order():
    g = torch.Generator().manual_seed(2)
    t = 0.1 + 0.85 * torch.rand(500, generator=g, dtype=torch.float64)
    r = (t - 0.05) * torch.rand(500, generator=g, dtype=torch.float64)
    z = spread(t)[:, None] * torch.randn(500, 1, generator=g, dtype=torch.float64)
    v = exact(z, t, t)
    errors = []
    for step in (0.02, 0.01, 0.005):
        derivative = total_derivative(exact, z, t, r, v, step=step)
        residual = exact(z, t, r) - mean_flow_target(v, derivative, t, r)
        errors.append(float(residual.square().mean().sqrt()))
    assert errors[0] < 7e-4
    assert all(3.5 < before / after < 4.5 for before, after in itertools.pairwise(errors)), errors


def test_a_composed_step_is_the_map_of_both():
    """Exactly, if both maps are; with a straight step in place of the first one, up to its length squared."""
    g = torch.Generator().manual_seed(5)
    t = 0.3 + 0.6 * torch.rand(200, generator=g, dtype=torch.float64)
    r = 0.2 * torch.rand(200, generator=g, dtype=torch.float64)
    z = spread(t)[:, None] * torch.randn(200, 1, generator=g, dtype=torch.float64)

    def error(length: float, first: MeanVelocity) -> float:
        m = t - length * (t - r)
        u = first(z, t, m)
        wanted = composed_target(u, exact(mapped(z, t, m, u), m, r), (t - m) / (t - r))
        return float((wanted - exact(z, t, r)).abs().mean())

    assert error(0.5, exact) < 1e-12
    halved = [error(length, lambda z, t, m: exact(z, t, t)) for length in (0.1, 0.05, 0.025)]
    assert all(3.5 < before / after < 4.5 for before, after in itertools.pairwise(halved)), halved


def test_the_difference_stays_within_the_path():
    """At the noisiest time, where the one-step map begins, and where the step is shorter than the difference."""
    seen: list[Tensor] = []

    def u(z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        seen.append(t)
        assert bool((t >= r - 1e-12).all())
        return exact(z, t, r)

    t = torch.tensor([0.9, 0.9, 0.9, 0.004], dtype=torch.float64)
    r = torch.tensor([0.0, 0.9, 0.898, 0.0], dtype=torch.float64)
    z = torch.ones(4, 1, dtype=torch.float64)
    derivative = total_derivative(u, z, t, r, exact(z, t, t), noisiest=0.9)
    assert max(float(times.max()) for times in seen) == 0.9
    assert bool(derivative.isfinite().all())
    wanted = mean_flow_target(exact(z, t, t), derivative, t, r)
    torch.testing.assert_close(wanted, exact(z, t, r), rtol=0, atol=5e-3)
    torch.testing.assert_close(wanted[1], exact(z, t, t)[1], rtol=0, atol=1e-12)


def test_the_losses_of_known_errors():
    target_, off = torch.zeros(2, 3), torch.tensor([[0.0] * 3, [0.3, -0.4, 0.0]])
    square = (0.09 + 0.16) / 3
    torch.testing.assert_close(pseudo_huber(off, target_, 0.1), torch.tensor([0.0, (square + 0.01) ** 0.5 - 0.1]))
    u = off.clone().requires_grad_()
    losses = adaptive(u, target_, 0.01)
    torch.testing.assert_close(losses.detach(), torch.tensor([0.0, square / (square + 0.01)]))
    losses.sum().backward()
    torch.testing.assert_close(u.grad, 2 * off / 3 / torch.tensor([[0.01], [square + 0.01]]))
    scales = log_uniform(1.0, 8.0, torch.tensor([0.0, 1 / 3, 1.0]))
    torch.testing.assert_close(scales, torch.tensor([1.0, 2.0, 8.0]))


# ---- students of a mixture of two, whose flow in one dimension keeps the quantiles

MEANS, WIDTH, SHARES = (-1.2, 0.8), 0.25, (0.35, 0.65)


class Student(nn.Module):
    """u(z, t, r) by a small network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(9, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 1))

    def forward(self, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        t, r = t[:, None], r[:, None]
        return self.net(torch.cat([z, t, r, t - r, z * t, z * r, (3 * z).tanh(), (3 * t).sin(), (3 * r).cos()], 1))


def velocity(z: Tensor, t: Tensor) -> Tensor:
    """Of the mixture's flow at z_t (N, 1): E[eps - x | z_t]."""
    t = t[:, None].clamp(max=1 - 1e-6)
    means, shares = torch.tensor(MEANS), torch.tensor(SHARES)
    total = ((1 - t) * WIDTH) ** 2 + t**2
    posterior = torch.softmax(shares.log() - (z - (1 - t) * means) ** 2 / (2 * total), 1)
    x = (posterior * (means + (1 - t) * WIDTH**2 / total * (z - (1 - t) * means))).sum(1, keepdim=True)
    return torch.where(t > 1e-4, (z - x) / t.clamp(min=1e-4), -x)


def quantile_map(z: Tensor) -> Tensor:
    """The exact flow of noise z (N, 1) to data, by bisection of the mixture's distribution function."""
    wanted = torch.special.ndtr(z.double())
    low, high = torch.full_like(wanted, -6), torch.full_like(wanted, 6)
    for _ in range(60):
        middle = (low + high) / 2
        parts = zip(MEANS, SHARES, strict=True)
        below = sum(share * torch.special.ndtr((middle - mean) / WIDTH) for mean, share in parts)
        low, high = torch.where(below < wanted, middle, low), torch.where(below < wanted, high, middle)
    return ((low + high) / 2).float()


def trajectories(z: Tensor, steps: int = 64) -> tuple[Tensor, Tensor]:
    """Times (S + 1,) and points (S + 1, N, 1) of Heun's rule from noise z."""
    times = torch.linspace(1, 0, steps + 1)
    points = [z]
    for t, s in itertools.pairwise(times):
        first = velocity(points[-1], t.expand(len(z)))
        second = velocity(points[-1] - (t - s) * first, s.expand(len(z)))
        points.append(points[-1] - (t - s) * (first + second) / 2)
    return times, torch.stack(points)


def trained(method: str, steps: int = 700, batch: int = 384) -> Student:
    student, g = Student(), torch.Generator().manual_seed(3)
    optimiser = torch.optim.Adam(student.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, steps)
    times, points = trajectories(torch.randn(4096, 1, generator=g))
    for _ in range(steps):
        rows = torch.randint(4096, (batch,), generator=g)
        i = torch.randint(64, (batch,), generator=g)
        j = i + 1 + ((64 - i) * torch.rand(batch, generator=g)).long().clamp(max=63 - i)
        j = torch.where(torch.rand(batch, generator=g) < 0.5, 64, j)
        z, t, r = points[i, rows], times[i], times[j]
        if method == "trajectories":
            loss = pseudo_huber(student(z, t, r), mean_velocity(z, points[j, rows], t, r))
        elif method == "consistency":
            r = torch.where(torch.rand(batch, generator=g) < 0.5, t, r)
            m = torch.maximum(t * (1 - (1 + 8 * torch.sigmoid(-t)) / 64), r)
            v, share = velocity(z, t), ((t - m) / (t - r)).nan_to_num(1.0)
            with torch.no_grad():
                rest = student(mapped(z, t, m, v), m, r)
            wanted = composed_target(v, rest, share)
            loss = pseudo_huber(student(z, t, r) / share[:, None], wanted / share[:, None])
        else:
            r = torch.where(torch.rand(batch, generator=g) < 0.25, t, r)
            v = velocity(z, t)
            wanted = mean_flow_target(v, total_derivative(student, z, t, r, v), t, r)
            loss = adaptive(student(z, t, r), wanted)
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
        schedule.step()
    return student


@torch.no_grad()
def sampled(student: MeanVelocity, z: Tensor, calls: int) -> Tensor:
    for t, r in itertools.pairwise(torch.linspace(1, 0, calls + 1)):
        t, r = t.expand(len(z)), r.expand(len(z))
        z = mapped(z, t, r, student(z, t, r))
    return z


@pytest.mark.parametrize("method", ["trajectories", "mean-flow", "consistency"])
def test_a_student_of_a_mixture_reaches_the_closed_form(method):
    student = trained(method)
    z = torch.randn(2000, 1, generator=torch.Generator().manual_seed(4))
    wanted = quantile_map(z)
    apart = {calls: float((sampled(student, z, calls) - wanted).abs().mean()) for calls in (1, 2, 4)}
    undistilled = {
        calls: float((sampled(lambda z, t, r: velocity(z, t), z, calls) - wanted).abs().mean()) for calls in (1, 2, 4)
    }
    assert max(apart.values()) < 0.13, apart
    share = 0.55 if method == "consistency" else 0.4  # the teacher's short steps are straight: at 4 calls that counts
    assert all(apart[calls] < share * undistilled[calls] for calls in apart), (apart, undistilled)

    def step(z: Tensor, t: float, r: float) -> Tensor:
        begin, end = torch.full((len(z),), t), torch.full((len(z),), r)
        with torch.no_grad():
            return mapped(z, begin, end, student(z, begin, end))

    composed = float((step(step(z, 0.9, 0.5), 0.5, 0.1) - step(z, 0.9, 0.1)).abs().mean())
    assert composed < 0.06, "two steps lead where one does"
