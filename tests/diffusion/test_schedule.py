"""Schedules: the original's numbers at the table points, and a well-behaved curve between them."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from parity import golden, needs_parity
from sfumato.diffusion.process import time_of_index
from sfumato.diffusion.schedule import (
    CosineConfig,
    DiscreteSchedule,
    FlowConfig,
    LinearConfig,
    ScaledLinearConfig,
    ScheduleConfig,
    SigmoidConfig,
    SqrtConfig,
    betas_of,
    build_schedule,
)

CONFIGS = [
    ScaledLinearConfig(),
    ScaledLinearConfig(start=0.00085, end=0.012),
    ScaledLinearConfig(zero_terminal_snr=True),
    ScaledLinearConfig(steps=7),
    LinearConfig(),
    SqrtConfig(),
    CosineConfig(),
    CosineConfig(zero_terminal_snr=True),
    SigmoidConfig(),
    SigmoidConfig(steps=50),
    FlowConfig(),
]
INDICES = torch.arange(1000)


@needs_parity
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("linear", ScaledLinearConfig(start=1e-4, end=2e-2)),
        ("sqrt_linear", LinearConfig()),
        ("sqrt", SqrtConfig()),
        ("cosine", CosineConfig()),
    ],
)
def test_betas_are_the_originals(name, config):
    torch.testing.assert_close(betas_of(config), golden("misc")[f"betas/{name}"], rtol=0, atol=1e-13)


@needs_parity
@pytest.mark.parametrize(("name", "end"), [("ffhq256", 0.0195), ("bsr_sr", 0.0155), ("semantic_synthesis256", 0.0205)])
def test_table_points_are_the_buffers_of_the_original(name, end):
    schedule = build_schedule(ScaledLinearConfig(end=end))
    buffers = golden(name)
    alpha, sigma = schedule(time_of_index(INDICES, 1000))
    expected = {
        "betas": schedule.betas,
        "alphas_cumprod": alpha.square(),
        "sqrt_alphas_cumprod": alpha,
        "sqrt_one_minus_alphas_cumprod": sigma,
        "log_one_minus_alphas_cumprod": 2 * sigma.log(),
        "sqrt_recip_alphas_cumprod": 1 / alpha,
        "sqrt_recipm1_alphas_cumprod": sigma / alpha,
        "alphas_cumprod_prev": schedule(INDICES / 1000)[0].square(),
    }
    for key, ours in expected.items():
        torch.testing.assert_close(ours.float(), buffers[f"schedule/{key}"], rtol=1e-6, atol=1e-9, msg=key)


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_between_the_points_the_curve_is_monotone_and_invertible(config):
    schedule = build_schedule(config)
    t = torch.linspace(0, 1, 8191, dtype=torch.float64)
    alpha, sigma = schedule(t)
    log_snr = schedule.log_snr(t)
    assert (alpha[0], sigma[0]) == (1, 0)
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() >= 0).all()
    assert (sigma.diff()[: len(t) // 8] > 0).all()
    assert (log_snr.diff() < 0).all()
    torch.testing.assert_close(schedule.time_of_log_snr(log_snr), t, rtol=0, atol=1e-12)
    inner = slice(1, -1)
    torch.testing.assert_close(torch.log(alpha / sigma)[inner], log_snr[inner], rtol=0, atol=1e-7)
    if schedule.discrete:
        torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(t), rtol=0, atol=1e-14)


def test_table_values_are_exact_not_interpolated():
    schedule = build_schedule(ScaledLinearConfig())
    assert isinstance(schedule, DiscreteSchedule)
    alpha, sigma = schedule(time_of_index(INDICES, 1000))
    assert torch.equal(alpha, schedule.alphas_cumprod.sqrt())
    assert torch.equal(sigma, (1 - schedule.alphas_cumprod).sqrt())


def test_values_keep_the_shape_of_the_times():
    schedule = build_schedule(CosineConfig())
    for shape in [(), (3,), (2, 5)]:
        alpha, sigma = schedule(torch.full(shape, 0.25))
        assert alpha.shape == sigma.shape == schedule.log_snr(torch.full(shape, 0.25)).shape == shape
        assert alpha.dtype == torch.float64


def test_zero_terminal_keeps_the_first_value_and_ends_in_noise():
    plain, rescaled = build_schedule(ScaledLinearConfig()), build_schedule(ScaledLinearConfig(zero_terminal_snr=True))
    assert rescaled(1.0) == (0, 1)
    assert rescaled.log_snr(1.0) == -torch.inf
    assert rescaled.time_of_log_snr(-torch.inf) == 1
    torch.testing.assert_close(rescaled(0.001)[0], plain(0.001)[0], rtol=1e-12, atol=0)
    assert rescaled.zero_terminal
    assert not plain.zero_terminal


def test_cosine_follows_its_formula_where_it_is_not_clipped():
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)

    def curve(t):
        return torch.cos((t + 0.008) / 1.008 * torch.pi / 2).square()

    alpha, _ = build_schedule(CosineConfig())(t)
    torch.testing.assert_close(alpha.square(), curve(t) / curve(torch.tensor(0.0)), rtol=1e-6, atol=0)


def test_noisier_than_the_noisiest_is_the_last_time():
    assert build_schedule(ScaledLinearConfig()).time_of_log_snr(-100.0) == 1
    assert build_schedule(ScaledLinearConfig()).time_of_log_snr(torch.inf) == 0


@pytest.mark.parametrize("t", [-0.01, 1.01, float("nan")])
def test_times_outside_the_range_are_refused(t):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        build_schedule(ScaledLinearConfig())(t)


def test_configurations_are_distinguished_by_kind_and_checked():
    adapter = TypeAdapter(ScheduleConfig)
    for config in CONFIGS:
        assert adapter.validate_python(config.model_dump()) == config
    for wrong in [{"kind": "scaled-linear", "start": 2}, {"kind": "lineer"}, {"kind": "flow", "steps": 1}]:
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
