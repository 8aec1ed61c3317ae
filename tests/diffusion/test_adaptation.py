"""Adaptive parts of an objective: the density by loss history, and the learned weighting."""

import pytest
import torch
from torch import Tensor

from sfumato.diffusion.objective import Adaptation, ObjectiveConfig, check_objective
from sfumato.diffusion.schedule import CosineConfig, FlowConfig, ScaledLinearConfig, build_schedule
from sfumato.diffusion.times import LogitNormalTimes, LossHistory, LossHistoryTimes, RandomTimes, UniformTimes, sample
from sfumato.diffusion.weighting import LearnedWeighting, LogVariance, MinSnrWeighting, error_scale, weight
from sfumato.errors import UserError

LINEAR = build_schedule(ScaledLinearConfig())


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(config: LossHistoryTimes) -> LossHistory:
    """A history in which the loss rises along the parts, from 1 to 3."""
    history = LossHistory(config)
    parts = torch.arange(config.bins).repeat(config.memory)
    history.update(parts, 1 + 2 * parts / (config.bins - 1))
    return history


# ---- the density by loss history


def test_nothing_is_preferred_until_every_part_was_seen_often_enough() -> None:
    history = LossHistory(LossHistoryTimes(bins=4, memory=2))
    history.update(torch.tensor([0, 0, 1, 1, 2, 2, 3]), torch.tensor([9.0, 9, 1, 1, 1, 1, 1]))
    assert torch.equal(history.probabilities(), torch.full((4,), 0.25, dtype=torch.float64))
    history.update(torch.tensor([3]), torch.tensor([1.0]))
    expected = 0.1 / 4 + 0.9 * torch.tensor([9.0, 1, 1, 1], dtype=torch.float64) / 12
    torch.testing.assert_close(history.probabilities(), expected)


def test_losses_enter_a_running_mean_of_their_squares_in_any_order() -> None:
    history = LossHistory(LossHistoryTimes(bins=2, memory=4))
    history.update(torch.tensor([0, 0, 1]), torch.tensor([1.0, 2.0, 5.0]))
    torch.testing.assert_close(history.mean_square, torch.tensor([2.5, 25.0], dtype=torch.float64))
    history.update(torch.tensor([0, 0]), torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(history.mean_square[0].item(), 7.5)  # the plain mean while there are few
    history.update(torch.tensor([0]), torch.tensor([1.0]))
    torch.testing.assert_close(history.mean_square[0].item(), 0.75 * 7.5 + 0.25)
    before = history.mean_square.clone()
    history.update(torch.tensor([0, 1]), torch.tensor([float("nan"), float("inf")]))
    assert torch.equal(history.mean_square, before)
    assert history.count.tolist() == [5, 1]


@pytest.mark.parametrize(
    "base", [UniformTimes(low=0.2, high=0.9), LogitNormalTimes(mean=-0.3)], ids=["uniform", "logit"]
)
def test_the_density_is_normalised_and_importance_leaves_the_expected_loss_as_it_was(base) -> None:
    config = LossHistoryTimes(base=base, bins=7, memory=3, uniform_share=0.2)
    history = filled(config)
    probabilities = history.probabilities()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)
    assert probabilities.min() >= 0.2 / 7
    n = 20000
    sampled = sample(config, n, source(), LINEAR, stratified=True, history=history)
    plain = sample(base, n, source(), LINEAR, stratified=True)
    assert sampled.part is not None
    assert sampled.importance is not None
    shares = torch.bincount(sampled.part, minlength=7) / n
    torch.testing.assert_close(shares.double(), probabilities, atol=2e-4, rtol=0)
    assert sampled.importance.max() <= 1 / 0.2
    assert sampled.importance.mean().item() == pytest.approx(1, abs=1e-3)
    for loss in (lambda t: t, lambda t: (3 * t).exp(), lambda t: torch.sin(9 * t)):
        corrected = (sampled.importance * loss(sampled.t)).mean().item()
        assert corrected == pytest.approx(loss(plain.t).mean().item(), abs=1e-3)
        assert abs(loss(sampled.t).mean().item() - corrected) > 0.02, "without the correction it is another loss"


def test_weighed_losses_vary_less_than_those_of_the_base_density() -> None:
    config = LossHistoryTimes(base=UniformTimes(), bins=50, memory=4)
    history = LossHistory(config)

    def loss(t: Tensor) -> Tensor:
        return t**6

    for step in range(30):
        sampled = sample(config, 64, source(step), LINEAR, history=history)
        assert sampled.part is not None
        history.update(sampled.part, loss(sampled.t))
    sampled, plain = (sample(c, 5000, source(99), LINEAR, history=history) for c in (config, UniformTimes()))
    assert sampled.importance is not None
    assert (sampled.importance * loss(sampled.t)).var() < 0.2 * loss(plain.t).var()


def test_a_history_is_needed_and_the_base_is_checked() -> None:
    with pytest.raises(ValueError, match="requires its history"):
        sample(LossHistoryTimes(), 3, source(), LINEAR)
    wrong = ObjectiveConfig(times=LossHistoryTimes(base=UniformTimes(low=0.8, high=0.2)))
    with pytest.raises(UserError, match="swap"):
        check_objective(wrong, LINEAR)


# ---- weightings


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("schedule", [CosineConfig(), FlowConfig()], ids=["cosine", "flow"])
def test_min_snr_is_the_same_weight_on_x0_whatever_is_predicted(kind, schedule) -> None:
    built = build_schedule(schedule)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    alpha, sigma = built(t)
    on_x0 = weight(MinSnrWeighting(gamma=5), kind, built, t) * error_scale(kind, alpha, sigma)
    torch.testing.assert_close(on_x0, (alpha / sigma).square().clamp(max=5))


@pytest.mark.parametrize("schedule", [ScaledLinearConfig(zero_terminal_snr=True), FlowConfig()], ids=["linear", "flow"])
def test_learned_weighting_makes_the_loss_equal_at_every_time(schedule) -> None:
    """Errors that differ by a factor of a hundred over the times, with noise of their own, end at one each.

    Up to t = 0.95: nearer to pure noise, log-SNRs lie so far apart that few samples teach each.
    """
    built = build_schedule(schedule)
    torch.manual_seed(0)
    adaptation = Adaptation(ObjectiveConfig(weighting=LearnedWeighting()))
    assert adaptation.log_variance is not None
    optimiser = torch.optim.Adam(adaptation.parameters(), lr=0.01, betas=(0.9, 0.99))

    def expected(t: Tensor) -> Tensor:
        return (0.02 + 2 * (1 - t) ** 4).float()

    first = adaptation.log_variance(built.log_snr(torch.tensor([0.5, 1.0], dtype=torch.float64)))
    assert torch.equal(first.detach(), torch.zeros(2)), "it begins as no weighting"
    for step in range(400):
        g = source(step)
        t = (torch.randperm(128, generator=g) + torch.rand(128, generator=g)).double().add(1e-9).div(128).clamp(max=1)
        errors = expected(t) * torch.randn(128, 16, generator=g).square().mean(1)
        total, _ = adaptation(errors, RandomTimes(t), built)
        for group in optimiser.param_groups:
            group["lr"] = 0.02 * (1 - step / 400)
        optimiser.zero_grad()
        total.mean().backward()
        optimiser.step()
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    _, seen = adaptation(expected(t), RandomTimes(t), built)
    assert (seen - 1).abs().max() < 0.15, seen


def test_the_history_remembers_the_weighed_loss_and_importance_weighs_all_of_it() -> None:
    adaptation = Adaptation(ObjectiveConfig(times=LossHistoryTimes(bins=2), weighting=LearnedWeighting(features=4)))
    assert isinstance(adaptation.log_variance, LogVariance)
    torch.nn.init.constant_(adaptation.log_variance.linear.bias, 0.5)
    times = RandomTimes(
        torch.tensor([0.3, 0.7], dtype=torch.float64), torch.tensor([0, 1]), torch.tensor([0.5, 2.0]).double()
    )
    total, seen = adaptation(torch.tensor([1.0, 3.0]), times, LINEAR)
    weighed = torch.tensor([1.0, 3.0]) * torch.tensor(-0.5).exp()
    torch.testing.assert_close(seen, weighed)
    torch.testing.assert_close(total.detach(), (weighed + 0.5) * torch.tensor([0.5, 2.0]))
    assert not list(Adaptation(ObjectiveConfig()).state_dict()), "a run without either saves nothing for it"
