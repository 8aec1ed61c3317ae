"""Prediction kinds: every pair converts into each other, on schedules that preserve variance and one that does not."""

from itertools import product

import pytest
import torch

from parity import golden, needs_parity
from sfumato.diffusion.prediction import check_prediction, convert, target, to_eps, to_x0
from sfumato.diffusion.process import add_noise, time_of_index
from sfumato.diffusion.schedule import CosineConfig, FlowConfig, ScaledLinearConfig, build_schedule
from sfumato.errors import UserError

KINDS = ["eps", "x0", "v", "flow"]


@pytest.mark.parametrize(("source", "to"), list(product(KINDS, KINDS)))
@pytest.mark.parametrize("config", [ScaledLinearConfig(), CosineConfig(), FlowConfig()], ids=repr)
def test_every_pair_round_trips(config, source, to):
    schedule = build_schedule(config)
    g = torch.Generator().manual_seed(3)
    x0, noise = (torch.randn(2, 3, 5, 7, generator=g, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([0.15, 0.8], dtype=torch.float64)
    alpha, sigma = schedule(t)
    x_t = add_noise(schedule, x0, noise, t)
    prediction = target(source, x0, noise, alpha, sigma)
    other = convert(source, to, prediction, x_t, alpha, sigma)
    torch.testing.assert_close(other, target(to, x0, noise, alpha, sigma), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(convert(to, source, other, x_t, alpha, sigma), prediction, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(to_x0(source, prediction, x_t, alpha, sigma), x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(to_eps(source, prediction, x_t, alpha, sigma), noise, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_any_prediction_is_consistent_with_x_t(kind):
    """x_t = alpha · x0 + sigma · eps holds for a wrong prediction, too."""
    alpha, sigma = 0.8, 0.6
    g = torch.Generator().manual_seed(4)
    x_t, prediction = (torch.randn(2, 5, generator=g, dtype=torch.float64) for _ in range(2))
    x0, eps = (f(kind, prediction, x_t, alpha, sigma) for f in (to_x0, to_eps))
    torch.testing.assert_close(alpha * x0 + sigma * eps, x_t)


def test_v_and_flow_say_what_the_clean_latent_is_even_in_pure_noise():
    x0, noise = torch.tensor([[0.3]]), torch.tensor([[-1.2]])
    for kind in ["x0", "v", "flow"]:
        torch.testing.assert_close(to_x0(kind, target(kind, x0, noise, 0.0, 1.0), noise, 0.0, 1.0), x0)


@needs_parity
def test_the_originals_clean_latent():
    tensors = golden("ffhq256")
    alpha, sigma = build_schedule(ScaledLinearConfig())(time_of_index(tensors["in/t"], 1000))
    x0 = to_x0("eps", tensors["in/noise"], tensors["in/z_noisy"], alpha, sigma)
    torch.testing.assert_close(x0, tensors["diff/pred_x0"], rtol=1e-6, atol=2e-6)


def test_eps_is_refused_where_alpha_reaches_zero():
    for config in [FlowConfig(), ScaledLinearConfig(zero_terminal_snr=True)]:
        with pytest.raises(UserError, match="'v' or 'flow'"):
            check_prediction("eps", build_schedule(config))
        check_prediction("v", build_schedule(config))
    check_prediction("eps", build_schedule(ScaledLinearConfig()))
