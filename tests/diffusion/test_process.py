"""The forward process against golden tensors, Bayes' rule and simulated chains."""

import pytest
import torch

from parity import golden, needs_parity
from sfumato.diffusion.process import (
    add_noise,
    broadcast,
    network_time,
    posterior,
    prior_bits,
    time_of_index,
)
from sfumato.diffusion.schedule import CosineConfig, FlowConfig, ScaledLinearConfig, build_schedule


@needs_parity
def test_forward_algebra_of_the_original():
    tensors = golden("ffhq256")
    schedule = build_schedule(ScaledLinearConfig())
    t = time_of_index(tensors["in/t"], 1000)
    noised = add_noise(schedule, tensors["in/x0"], tensors["in/noise"], t)
    torch.testing.assert_close(noised, tensors["diff/q_sample"], rtol=1e-6, atol=1e-6)
    back = posterior(schedule, tensors["in/x0"], tensors["in/z_noisy"], t, t - 1 / 1000)
    torch.testing.assert_close(back.mean, tensors["diff/q_posterior_mean"], rtol=1e-6, atol=1e-6)
    logvar = tensors["diff/q_posterior_logvar"].flatten()
    torch.testing.assert_close(back.variance.log().float(), logvar, rtol=1e-6, atol=1e-6)
    bits = prior_bits(schedule, tensors["in/x0"])
    torch.testing.assert_close(bits.float(), tensors["diff/prior_bpd"], rtol=0, atol=1e-7)


@needs_parity
def test_posterior_variance_of_every_neighbouring_pair():
    schedule = build_schedule(ScaledLinearConfig())
    t = time_of_index(torch.arange(1000), 1000)
    ones = torch.ones(1000)
    back = posterior(schedule, ones, ones, t, t - 1 / 1000)
    torch.testing.assert_close(
        back.variance.float(), golden("ffhq256")["schedule/posterior_variance"], rtol=1e-5, atol=1e-12
    )


@pytest.mark.parametrize("config", [ScaledLinearConfig(), CosineConfig(), FlowConfig()], ids=repr)
def test_posterior_is_bayes_rule(config):
    """q(x_s | x_t, x0) ∝ q(x_t | x_s) q(x_s | x0), multiplied out on a grid of x_s."""
    schedule = build_schedule(config)
    t, s = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.35, dtype=torch.float64)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    x0, x_t = 0.7, -0.4
    x_s = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    ratio = alpha_t / alpha_s
    step_variance = sigma_t**2 - ratio**2 * sigma_s**2
    log_density = -((x_t - ratio * x_s) ** 2) / step_variance / 2 - (x_s - alpha_s * x0) ** 2 / sigma_s**2 / 2
    density = torch.softmax(log_density, 0)
    mean = (density * x_s).sum()
    variance = (density * (x_s - mean) ** 2).sum()
    back = posterior(schedule, torch.full((1, 1), x0).double(), torch.full((1, 1), x_t).double(), t, s)
    torch.testing.assert_close(back.mean[0, 0], mean, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(back.variance, variance, rtol=1e-6, atol=1e-9)


def test_posterior_to_the_clean_end_is_the_clean_latent():
    x0, x_t = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 2)
    back = posterior(build_schedule(ScaledLinearConfig()), x0, x_t, torch.tensor(0.001), torch.tensor(0.0))
    torch.testing.assert_close(back.mean, x0)
    assert back.variance == 0


@pytest.mark.parametrize("steps", [2, 3, 7, 50, 999, 1000, 1024, 4000])
def test_the_network_sees_whole_numbers(steps):
    index = torch.arange(steps)
    seen = network_time(time_of_index(index, steps), steps)
    assert torch.equal(seen, index.double())
    assert torch.equal(seen.float(), index.float())
    assert network_time(torch.tensor(1.0), steps) == steps - 1


def test_network_time_between_indices_is_not_rounded():
    assert network_time(0.5004, 1000).item() == pytest.approx(499.4)


def test_broadcast_serves_each_sample_its_own_value():
    like = torch.zeros(2, 3, 5, 7)
    values = torch.tensor([1.0, 2.0], dtype=torch.float64)
    spread = like + broadcast(values, like)
    assert spread.dtype == torch.float32
    assert (spread[0] == 1).all()
    assert (spread[1] == 2).all()
    assert (like + broadcast(torch.tensor(3.0, dtype=torch.float64), like) == 3).all()
    assert (like + broadcast(4.0, like) == 4).all()
    for wrong in [torch.zeros(3), torch.zeros(7), torch.zeros(2, 3)]:
        with pytest.raises(ValueError, match="one per sample"):
            broadcast(wrong, like)


def test_noise_is_added_per_sample_when_no_axis_has_the_batchs_length():
    schedule = build_schedule(ScaledLinearConfig())
    x0, noise = torch.ones(2, 3, 5, 7), torch.full((2, 3, 5, 7), 2.0)
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    together = add_noise(schedule, x0, noise, t)
    for i in range(2):
        alone = add_noise(schedule, x0[i : i + 1], noise[i : i + 1], t[i])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-6, atol=1e-7)
