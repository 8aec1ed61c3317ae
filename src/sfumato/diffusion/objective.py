"""The training objective of the diffusion model: sample times and noise, compare prediction and target, weight."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.diffusion.prediction import PredictionKind, check_prediction, target
from sfumato.diffusion.process import broadcast
from sfumato.diffusion.schedule import Schedule
from sfumato.diffusion.times import DiscreteTimes, LossHistory, LossHistoryTimes, RandomTimes, TimeDensity, UniformTimes
from sfumato.diffusion.weighting import (
    LearnedWeighting,
    LogVariance,
    UniformWeighting,
    Weighting,
    elbo_weight,
    weight,
)
from sfumato.errors import UserError
from sfumato.schema import Schema

PosteriorLatents = Literal["sample", "mean"]
"""Which latent represents an image: a sample of its posterior, or the posterior's mean."""


class ObjectiveConfig(Schema):
    """The denoiser's training objective; the defaults are the paper's."""

    prediction: PredictionKind = "eps"
    latents: PosteriorLatents = "sample"
    """Clean latents: samples of the autoencoder's posterior, as in the paper, or its mean. In a channel whose posterior
    has collapsed, samples are noise, which the denoiser cannot predict, and the mean is constant."""
    times: TimeDensity = DiscreteTimes()
    stratified: bool = False
    """Stratify a batch's times over the density instead of sampling them independently: less noise in the loss."""
    weighting: Weighting = UniformWeighting()
    loss: Literal["l2", "l1", "huber"] = "l2"
    huber_delta: float = Field(0.1, gt=0)
    """The error at which the Huber loss changes from quadratic to linear."""
    elbo_weight: float = Field(0.0, ge=0)
    """Factor of an added term: the same error with the variational bound's weighting (the original's
    original_elbo_weight)."""
    offset_noise: float = Field(0.0, ge=0)
    """Standard deviation of an extra noise that is constant over each channel; 0 is off."""
    condition_mean: float = Field(0.0, ge=0)
    """Weight of an added loss: a small head predicts the mean clean latent from the condition's tokens alone, which
    teaches the order of words early; 0 is off. The head is not part of the model."""


def check_objective(config: ObjectiveConfig, schedule: Schedule) -> None:
    """Raises UserError where the objective cannot be trained on this schedule."""
    check_prediction(config.prediction, schedule)
    times = config.times.base if isinstance(config.times, LossHistoryTimes) else config.times
    if isinstance(times, UniformTimes) and times.low >= times.high:
        raise UserError(f"times.low {times.low:g} must be below times.high {times.high:g}: swap them")


UNTRAINED = 0.01
"""A weight below this share of the largest counts as nearly zero."""


def untrained_times(config: ObjectiveConfig, schedule: Schedule) -> str | None:
    """A warning if the weighting gives the noisiest time, at which sampling begins, no weight; else None.

    By their papers' formulas min-SNR (Hang et al. 2023: min(SNR, gamma) / (SNR + 1) for v), its soft form
    and P2 are 0 where the SNR is. They are implemented as published; it matters only for SNR 0, at the end of a
    schedule with zero terminal SNR.
    """
    last = torch.tensor(1.0, dtype=torch.float64)
    if config.elbo_weight > 0 or float(loss_weight(config, schedule, last)) > 0:
        return None
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    weights = loss_weight(config, schedule, t)
    low = t[weights < UNTRAINED * weights.max()]
    first = float(low[low > t[weights.argmax()]].min())
    return (
        f"objective.weighting.kind {config.weighting.kind} is 0 at t = 1, where this schedule's SNR is 0, and below "
        f"{UNTRAINED:.0%} of its peak from t = {first:g} on: the first steps of sampling are hardly trained; "
        "objective.weighting.kind=uniform trains them"
    )


def sample_noise(config: ObjectiveConfig, latent: Sequence[int], normal: Callable[[Sequence[int]], Tensor]) -> Tensor:
    """Noise of samples of shape `latent` (C, ...), with the configured offset per sample and channel added.

    `normal` draws from N(0, 1) for all samples, whose axes come first, with the given shape of one.
    """
    noise = normal(latent)
    if config.offset_noise == 0:
        return noise
    return noise + config.offset_noise * normal((latent[0], *[1] * (len(latent) - 1)))


def loss_weight(config: ObjectiveConfig, schedule: Schedule, t: Tensor) -> Tensor:
    """The weight of the predicted quantity's error at times t in (0, 1]; float64, of t's shape."""
    return weight(config.weighting, config.prediction, schedule, t)


def loss(
    config: ObjectiveConfig, schedule: Schedule, prediction: Tensor, x0: Tensor, noise: Tensor, t: Tensor
) -> Tensor:
    """The loss per sample (B,), float32 or wider: the mean over all axes but the first, weighted.

    prediction, x0, noise (B, ...); t (B,) in (0, 1].
    """
    alpha, sigma = schedule(t)
    if prediction.dtype in (torch.float16, torch.bfloat16):
        prediction = prediction.float()
    expected = target(config.prediction, x0.to(prediction.dtype), noise.to(prediction.dtype), alpha, sigma)
    match config.loss:
        case "l2":
            error = (prediction - expected).square()
        case "l1":
            error = (prediction - expected).abs()
        case "huber":
            error = torch.nn.functional.huber_loss(prediction, expected, reduction="none", delta=config.huber_delta)
    per_sample = error.flatten(1).mean(1)
    weights = loss_weight(config, schedule, t)
    if config.elbo_weight > 0:
        weights = weights + config.elbo_weight * elbo_weight(config.prediction, schedule, t)
    return per_sample * broadcast(weights, per_sample)


class Adaptation(nn.Module):
    """The trained state of an objective: the history of losses, the learned weighting, or neither.

    A module, to be saved with the run's state; its parameters are trained with the model's.
    """

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.history = LossHistory(config.times) if isinstance(config.times, LossHistoryTimes) else None
        self.log_variance = LogVariance(config.weighting) if isinstance(config.weighting, LearnedWeighting) else None

    def forward(self, losses: Tensor, times: RandomTimes, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """The loss to minimise, and the losses to record (detached), both (B,), from the objective's losses (B,).

        With learned weighting the loss L becomes L · exp(-u) + u; with a loss history it is then multiplied by
        the importance weight of its time.
        """
        total, seen = losses, losses.detach()
        if self.log_variance is not None:
            u = self.log_variance(schedule.log_snr(times.t)).to(losses.dtype)
            total = losses * (-u).exp() + u
            seen = seen * (-u.detach()).exp()
        if times.importance is not None:
            total = total * broadcast(times.importance, total)
        return total, seen
