"""The contract of every sampler on every schedule: finite to the end, independent samples, no hidden state."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from oracles import dataset, gaussian, no_noise, three_hills
from sfumato.diffusion.process import add_noise
from sfumato.diffusion.schedule import FlowConfig, ScaledLinearConfig, build_schedule
from sfumato.errors import UserError
from sfumato.rng import SampleNoise
from sfumato.sampling.ancestral import DDIM
from sfumato.sampling.dpm_solver import DPM2MSDE
from sfumato.sampling.grids import GridConfig, build_grid
from sfumato.sampling.heun import EDM
from sfumato.sampling.loop import Step, sample
from sfumato.sampling.plms import PLMS
from sfumato.sampling.sampler import exponential_moments
from sfumato.sampling.table import SAMPLERS, SamplerConfig, build_sampler
from sfumato.sampling.unipc import UniPC

LINEAR = build_schedule(ScaledLinearConfig())
PURE_NOISE = [FlowConfig(), ScaledLinearConfig(zero_terminal_snr=True)]
SHAPE = (2, 3, 5, 7)


def make(kind):
    return build_sampler(SAMPLERS[kind].config())


def start(dtype=torch.float32, seeds=(4, 5)):
    return SampleNoise(seeds, "start")((len(seeds), *SHAPE[1:])).to(dtype)


def run(kind, schedule, denoise, x, steps=6, grid="trailing", seeds=(4, 5)):
    times = build_grid(GridConfig(kind=grid), schedule, steps)
    return sample(make(kind), schedule, denoise, x, times, SampleNoise(seeds))


def wavy(schedule):
    """A denoiser in which every position depends on its neighbours, channels too."""

    def denoise(x_t, t):
        return torch.tanh(x_t.roll(1, -1) - 0.5 * x_t.roll(1, 1) + float(t))

    return denoise


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("config", [ScaledLinearConfig(), *PURE_NOISE], ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 3, 6])
@pytest.mark.parametrize("grid", ["trailing", "log-snr", "leading"])
def test_one_point_is_reached_at_the_clean_end(kind, config, steps, grid):
    schedule = build_schedule(config)
    times = build_grid(GridConfig(kind=grid), schedule, steps)
    x = add_noise(schedule, torch.full(SHAPE, 0.7), start(), times[0])
    if kind == "plms" and schedule(times[0])[0] == 0:
        with pytest.raises(UserError, match="dpmpp-2m"):
            sample(make(kind), schedule, gaussian(schedule, 0.7, 0.0), x, times, SampleNoise((4, 5)))
        return
    found = sample(make(kind), schedule, gaussian(schedule, 0.7, 0.0), x, times, SampleNoise((4, 5)))
    alpha, sigma = (float(v) for v in schedule(times[-1]))
    # PLMS reads noise off x where sigma is 0.04 and x0 where alpha is 0.01: both enlarge float32's rounding
    assert (found - alpha * 0.7).abs().max() < 4 * sigma + (1e-5 if kind != "plms" else 2e-3)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_memorised_data_set_is_reproduced(kind):
    points = torch.tensor([[1.0, 0.2], [-0.6, 0.9], [0.1, -1.1]], dtype=torch.float64)
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = build_grid(GridConfig(kind="trailing" if kind == "plms" else "log-snr"), LINEAR, 30)
    noise = SampleNoise(range(16))
    found = sample(make(kind), LINEAR, dataset(LINEAR, points), x, grid, lambda s: noise(s).double())
    nearest = torch.cdist(found, points).min(1).values
    assert nearest.max() < (0.05 if kind != "plms" else 0.2)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(kind):
    together = run(kind, LINEAR, wavy(LINEAR), start())
    for i, seed in enumerate((4, 5)):
        alone = run(kind, LINEAR, wavy(LINEAR), start(seeds=(seed,)), seeds=(seed,))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_type_is_kept_and_float32_is_as_good_as_float64(kind):
    wide = run(kind, LINEAR, wavy(LINEAR), start(torch.float64))
    narrow = run(kind, LINEAR, wavy(LINEAR), start())
    assert wide.dtype == torch.float64
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=2e-4)
    assert run(kind, LINEAR, wavy(LINEAR), start(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", SAMPLERS)
def test_steps_use_only_the_memory_they_are_given(kind):
    """Two runs woven into each other through one sampler object give what each gives alone."""
    sampler, grid = make(kind), build_grid(GridConfig(kind="trailing"), LINEAR, 5)
    xs, noises = [start(), 2 * start()], [SampleNoise((1, 2)), SampleNoise((3, 4))]
    alone = [
        sample(sampler, LINEAR, wavy(LINEAR), x, grid, SampleNoise(s))
        for x, s in zip(xs, [(1, 2), (3, 4)], strict=True)
    ]
    states = [sampler.init(), sampler.init()]
    for t, s in pairwise(grid):
        for i in range(2):
            xs[i], states[i] = sampler.step(wavy(LINEAR), LINEAR, xs[i], t, s, states[i], noises[i])
    for woven, expected in zip(xs, alone, strict=True):
        assert torch.equal(woven, expected)
    assert dataclasses.is_dataclass(sampler)
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampler.memory = 1


@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_callback_sees_every_step(kind):
    seen: list[Step] = []
    grid = build_grid(GridConfig(kind="trailing"), LINEAR, 4)
    found = sample(make(kind), LINEAR, wavy(LINEAR), start(), grid, SampleNoise((1, 2)), seen.append)
    assert [(step.index, step.total) for step in seen] == [(i, 4) for i in range(4)]
    assert torch.equal(torch.stack([step.t for step in seen]), grid[:-1])
    assert torch.equal(torch.stack([step.s for step in seen]), grid[1:])
    assert torch.equal(seen[-1].x, found)
    if kind != "edm":  # churn moves x before the first call
        before = [start(), *(step.x for step in seen[:-1])]
        assert all(torch.equal(step.x0, wavy(LINEAR)(x, step.t)) for x, step in zip(before, seen, strict=True))


def test_deterministic_samplers_take_no_noise():
    grid = build_grid(GridConfig(), LINEAR, 3)
    deterministic = [kind for kind, facts in SAMPLERS.items() if facts.order is not None]
    assert {"ddim", "dpmpp-2m", "heun"} <= set(deterministic)
    for kind in deterministic:
        without = sample(make(kind), LINEAR, wavy(LINEAR), start(), grid, no_noise)
        assert torch.equal(without, sample(make(kind), LINEAR, wavy(LINEAR), start(), grid, SampleNoise((1, 2)))), kind


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_step_must_go_down(kind):
    sampler, t = make(kind), torch.tensor(0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match="earlier time"):
        sampler.step(wavy(LINEAR), LINEAR, start(), t, t, sampler.init(), no_noise)


def test_a_grid_needs_two_times():
    with pytest.raises(ValueError, match="two times"):
        sample(DDIM(), LINEAR, wavy(LINEAR), start(), torch.ones(1), no_noise)


@pytest.mark.parametrize(
    ("make_wrong", "message"),
    [
        (lambda: DDIM(eta=1.5), "eta is 1.5"),
        (lambda: DDIM(eta=-0.1), "eta is -0.1"),
        (lambda: DPM2MSDE(eta=2), "eta is 2"),
        (lambda: EDM(churn=0.5), "churn is 0.5"),
        (lambda: UniPC(order=4), "order is 4"),
    ],
)
def test_values_out_of_range_are_refused(make_wrong, message):
    with pytest.raises(UserError, match=message):
        make_wrong()


def test_configurations_are_distinguished_by_kind():
    adapter = TypeAdapter(SamplerConfig)
    for kind, facts in SAMPLERS.items():
        config = adapter.validate_python({"kind": kind})
        assert type(config) is facts.config
        assert facts.suits
        assert build_sampler(config) == make(kind)
    assert adapter.validate_python({"kind": "ddim", "eta": 0.5}).eta == 0.5
    for wrong in [
        {"kind": "ddim", "eta": 2},
        {"kind": "unipc", "order": 4},
        {"kind": "plms", "eta": 0.5},
        {"kind": "dim"},
    ]:
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)


@pytest.mark.parametrize("h", [1e-6, 0.01, 0.5, 0.999, 1.0, 3.0, 20.0])
def test_exponential_moments_are_their_integrals(h):
    tau = torch.linspace(0, 1, 200001, dtype=torch.float64)
    for k, moment in enumerate(exponential_moments(h, 4)):
        integral = torch.trapezoid(h * torch.exp(-h * (1 - tau)) * tau**k, tau)
        assert moment == pytest.approx(integral.item(), rel=1e-7)


def test_multistep_memory_is_bounded():
    sampler = UniPC(3)
    state = sampler.init()
    grid = build_grid(GridConfig(kind="log-snr"), LINEAR, 12)
    x = torch.zeros(3, 2, dtype=torch.float64)
    for t, s in pairwise(grid[:-1]):
        x, state = sampler.step(three_hills(LINEAR), LINEAR, x, t, s, state, no_noise)
    assert len(state.history.predictions) == 3
    state = PLMS().init()
    for t, s in pairwise(grid[:7]):
        x, state = PLMS().step(three_hills(LINEAR), LINEAR, x, t, s, state, no_noise)
    assert len(state) == 3
