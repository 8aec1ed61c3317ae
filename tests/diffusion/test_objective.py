"""The objective: times sampled from the density they name, weights as their papers write them, a loss per sample."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from parity import golden, needs_parity
from sfumato.diffusion import times as densities
from sfumato.diffusion.objective import ObjectiveConfig, check_objective, loss, loss_weight, sample_noise
from sfumato.diffusion.prediction import target, to_x0
from sfumato.diffusion.process import add_noise, posterior, time_of_index
from sfumato.diffusion.schedule import CosineConfig, FlowConfig, ScaledLinearConfig, build_schedule
from sfumato.diffusion.times import LogitNormalTimes, UniformTimes
from sfumato.diffusion.weighting import (
    MinSnrWeighting,
    P2Weighting,
    SoftMinSnrWeighting,
    elbo_weight,
    error_scale,
)
from sfumato.errors import UserError

LINEAR = build_schedule(ScaledLinearConfig())
T = torch.tensor([0.05, 0.4, 0.95], dtype=torch.float64)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_from(generator: torch.Generator) -> Callable[[Sequence[int]], Tensor]:
    """Draws for two samples."""
    return lambda one: torch.randn(2, *one, generator=generator)


def draw_times(config, n, generator, schedule):
    return densities.sample(config.times, n, generator, schedule, config.stratified).t


def test_the_default_samples_training_indices_uniformly():
    schedule = build_schedule(ScaledLinearConfig(steps=5))
    times = draw_times(ObjectiveConfig(), 20000, source(), schedule)
    index = times * 5 - 1
    assert torch.equal(index, index.round())
    counts = torch.bincount(index.long(), minlength=5)
    assert len(counts) == 5
    assert (counts - 4000).abs().max() < 300  # five standard deviations


@pytest.mark.parametrize(
    ("density", "cdf"),
    [
        (UniformTimes(), lambda t: t),
        (UniformTimes(low=0.2, high=0.7), lambda t: ((t - 0.2) / 0.5).clamp(0, 1)),
        (LogitNormalTimes(mean=-0.4, std=1.3), lambda t: torch.special.ndtr((torch.logit(t) + 0.4) / 1.3)),
    ],
    ids=["uniform", "part", "logit-normal"],
)
@pytest.mark.parametrize("stratified", [False, True])
def test_times_follow_their_density(density, cdf, stratified):
    n = 4000
    times = draw_times(ObjectiveConfig(times=density, stratified=stratified), n, source(1), LINEAR).sort().values
    assert times[0] > 0
    assert times[-1] <= 1
    distance = (cdf(times) - (torch.arange(n) + 0.5) / n).abs().max()  # Kolmogorov-Smirnov
    assert distance < (1 / n if stratified else 1.9 / n**0.5)


def test_stratified_indices_cover_the_table():
    times = draw_times(ObjectiveConfig(stratified=True), 1000, source(2), LINEAR)
    assert len(times.unique()) == 1000
    assert not torch.equal(times, times.sort().values)


def test_times_depend_on_the_generator_alone():
    config = ObjectiveConfig(times=LogitNormalTimes(), stratified=True)
    assert torch.equal(draw_times(config, 8, source(5), LINEAR), draw_times(config, 8, source(5), LINEAR))
    assert torch.equal(
        sample_noise(config, (3, 4, 5), two_from(source(5))), torch.randn(2, 3, 4, 5, generator=source(5))
    )


def test_offset_noise_is_constant_over_each_channel():
    plain = sample_noise(ObjectiveConfig(), (3, 40, 50), two_from(source()))
    offset = sample_noise(ObjectiveConfig(offset_noise=0.5), (3, 40, 50), two_from(source())) - plain
    assert offset.std((2, 3)).max() < 1e-6
    assert offset.mean((2, 3)).unique().numel() == 6


@pytest.mark.parametrize("schedule", [LINEAR, build_schedule(CosineConfig())], ids=["linear", "cosine"])
def test_weights_are_those_of_the_papers(schedule):
    alpha, sigma = schedule(T)
    snr = (alpha / sigma) ** 2

    def weight(kind, weighting):
        return loss_weight(ObjectiveConfig(prediction=kind, weighting=weighting), schedule, T)

    torch.testing.assert_close(weight("x0", MinSnrWeighting()), snr.clamp(max=5))
    torch.testing.assert_close(weight("eps", MinSnrWeighting()), snr.clamp(max=5) / snr)
    torch.testing.assert_close(weight("v", MinSnrWeighting()), snr.clamp(max=5) / (snr + 1))
    torch.testing.assert_close(weight("v", SoftMinSnrWeighting(gamma=4)), 4 * snr / (snr + 4) / (snr + 1))
    torch.testing.assert_close(weight("eps", P2Weighting(gamma=0.5, k=2)), (2 + snr) ** -0.5)
    for kind in ["eps", "x0", "v", "flow"]:
        config = ObjectiveConfig(prediction=kind)
        assert torch.equal(loss_weight(config, schedule, T), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("config", [ScaledLinearConfig(), FlowConfig()], ids=repr)
@pytest.mark.parametrize("kind", ["eps", "x0", "v", "flow"])
def test_a_wrong_prediction_errs_by_the_stated_factor(config, kind):
    schedule = build_schedule(config)
    alpha, sigma = schedule(T)
    g = source(6)
    x0, noise, error = (torch.randn(3, 4, generator=g, dtype=torch.float64) for _ in range(3))
    x_t = add_noise(schedule, x0, noise, T)
    wrong = to_x0(kind, target(kind, x0, noise, alpha, sigma) + error, x_t, alpha, sigma) - x0
    ratio = error.square().sum(1) / wrong.square().sum(1)
    torch.testing.assert_close(ratio, error_scale(kind, alpha, sigma))


@needs_parity
def test_elbo_weights_are_the_originals():
    ours = elbo_weight("eps", LINEAR, time_of_index(torch.arange(1000), 1000))
    torch.testing.assert_close(ours.float(), golden("ffhq256")["schedule/lvlb_weights"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "flow"])
def test_elbo_weight_is_the_divergence_of_the_two_posteriors(kind):
    alpha, sigma = LINEAR(T)
    g = source(7)
    x0, noise, error = (torch.randn(3, 4, generator=g, dtype=torch.float64) for _ in range(3))
    x_t = add_noise(LINEAR, x0, noise, T)
    guess = to_x0(kind, target(kind, x0, noise, alpha, sigma) + error, x_t, alpha, sigma)
    true, model = (posterior(LINEAR, clean, x_t, T, T - 1 / 1000) for clean in (x0, guess))
    divergence = (true.mean - model.mean).square().sum(1) / (2 * true.variance)
    torch.testing.assert_close(elbo_weight(kind, LINEAR, T) * error.square().sum(1), divergence)


@pytest.mark.parametrize(("name", "expected"), [("l2", 2.5), ("l1", 1.5), ("huber", 0.145)])
def test_loss_is_a_mean_over_everything_but_the_batch(name, expected):
    noise = torch.zeros(3, 2, 5, 7)
    prediction = torch.ones(3, 2, 5, 7)
    prediction[:, 1] = -2
    prediction[2] = 0
    losses = loss(ObjectiveConfig(loss=name), LINEAR, prediction, torch.ones_like(noise), noise, T)
    torch.testing.assert_close(losses, torch.tensor([expected, expected, 0.0]))


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "flow"])
def test_the_target_itself_has_no_loss_and_weights_go_with_their_sample(kind):
    g = source(8)
    x0, noise = torch.randn(3, 2, 5, 7, generator=g), torch.randn(3, 2, 5, 7, generator=g)
    alpha, sigma = LINEAR(T)
    config = ObjectiveConfig(prediction=kind, weighting=MinSnrWeighting(), elbo_weight=0.01)
    perfect = target(kind, x0, noise, alpha, sigma)
    assert loss(config, LINEAR, perfect, x0, noise, T).abs().max() < 1e-10
    off = loss(config, LINEAR, perfect + 1, x0, noise, T)
    expected = loss_weight(config, LINEAR, T) + 0.01 * elbo_weight(kind, LINEAR, T)
    torch.testing.assert_close(off, expected.float(), rtol=1e-4, atol=1e-6)


def test_half_precision_predictions_are_compared_in_float32():
    prediction = torch.full((3, 2), 1.01, dtype=torch.bfloat16)
    losses = loss(ObjectiveConfig(), LINEAR, prediction, torch.zeros(3, 2), torch.ones(3, 2), T)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, (prediction.float() - 1).square().mean(1))


def test_impossible_objectives_are_refused():
    with pytest.raises(UserError, match="'eps'"):
        check_objective(ObjectiveConfig(), build_schedule(FlowConfig()))
    with pytest.raises(UserError, match="swap"):
        check_objective(ObjectiveConfig(times=UniformTimes(low=0.8, high=0.2)), LINEAR)
    check_objective(ObjectiveConfig(prediction="flow"), build_schedule(FlowConfig()))
