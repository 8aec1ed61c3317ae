"""The coupling of two stages that train together: how stage 2's loss trains the encoder, and the decoder's input.

The encoder makes the targets of stage 2. If stage 2's loss trains it, too, it learns to make targets that are easy to
predict, and the easiest are the same for every image: the latents collapse. Each coupling but the first prevents this.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from sfumato.diffusion import times
from sfumato.diffusion.objective import ObjectiveConfig, loss_weight
from sfumato.diffusion.schedule import Schedule
from sfumato.diffusion.times import RandomTimes
from sfumato.diffusion.weighting import error_scale
from sfumato.schema import Schema
from sfumato.training.stage2_losses import Stage2Losses


class NaiveCoupling(Schema):
    """The losses of both stages are added, and both train the encoder. It collapses; included for comparison."""

    kind: Literal["naive"] = "naive"
    weight: float = Field(1.0, gt=0, le=1000)
    """Factor of the gradient of stage 2's loss where it enters the encoder; the denoiser's own gradient is whole."""


class DetachedCoupling(Schema):
    """Stage 2's loss stops at the latent, which is normalised by running statistics; the decoder also reconstructs from
    noised latents, so that it tolerates the errors of stage 2 (UNITE, arXiv 2603.22283, without its shared weights)."""

    kind: Literal["detached"] = "detached"
    share: float = Field(0.5, ge=0, le=1)
    """Share of the images that are decoded from a noised latent, 0.5 as published; 0: none."""
    noise: float = Field(0.3, gt=0, lt=1)
    """The noised latent is (1 - t) z + t ε with t ~ U(0, noise), on the normalised latent; 0.3 as published."""


class PriorCoupling(Schema):
    """The denoiser is the prior of the latents and replaces the KL term: the encoder is deterministic, its latent has
    noise of a fixed strength, and the variational bound of the noised latent under the denoiser, in nats, is added to
    the reconstruction loss (unified latents, arXiv 2602.17270)."""

    kind: Literal["prior"] = "prior"
    weight: float = Field(0.01, gt=0, le=1000)
    """Factor of the nats, on the scale of loss.kl_weight, which it replaces. It stands for the paper's loss factor,
    whose value could not be verified; the paper's second number, a bias, belongs to a decoder that is a diffusion
    model, which this one is not."""
    log_snr: float = Field(5.0, ge=0, le=15)
    """Log of the signal-to-noise ratio of the fixed noise, 5 as published: a standard deviation of exp(-2.5)."""


class AnchoredCoupling(Schema):
    """Stage 2's loss stops at the normalised latent; the clean latent that the denoiser expects is decoded and compared
    with the image, and this error reaches the encoder and the denoiser, but not the decoder. Its target is the image,
    which cannot collapse. This form is our own."""

    kind: Literal["anchored"] = "anchored"
    weight: float = Field(0.5, gt=0, le=1000)
    """Factor of the error, which is also weighted by alpha² of its time, since predictions from a noisy latent are
    poor."""


Coupling = Annotated[
    NaiveCoupling | DetachedCoupling | PriorCoupling | AnchoredCoupling,
    Field(discriminator="kind"),
]


def normalises(coupling: Coupling) -> bool:
    """Whether the latents of stage 2 are normalised by running statistics; else their scale is what is trained."""
    return isinstance(coupling, DetachedCoupling | AnchoredCoupling)


def reaches_encoder(coupling: Coupling) -> bool:
    """Whether the encoder follows a part of stage 2's loss on the latents."""
    return isinstance(coupling, NaiveCoupling | PriorCoupling)


def encoder_factor(
    coupling: Coupling,
    config: ObjectiveConfig,
    schedule: Schedule,
    sampled: RandomTimes,
    losses: Stage2Losses,
    numbers: float,
) -> Tensor:
    """The factor (B,) of each sample's gradient where it enters the encoder.

    With kind prior the factor turns the gradient of the loss that is minimised into that of the prior's bound, so that
    one backward pass trains the denoiser with its own weights of the times, and the encoder with the bound's.

    Args:
        numbers: those of a latent over those of an image, which the reconstruction loss is a mean of.
    """
    if isinstance(coupling, NaiveCoupling):
        return torch.full_like(losses.adapted, coupling.weight, requires_grad=False)
    assert isinstance(coupling, PriorCoupling)
    (slope,) = torch.autograd.grad(losses.adapted.sum(), losses.plain, retain_graph=True)
    trained = slope.double() * loss_weight(config, schedule, sampled.t)
    bound = bound_weight(coupling.log_snr, config, schedule, sampled)
    return (coupling.weight * numbers * bound / trained.clamp_min(1e-12)).to(losses.adapted.dtype)


def bound_weight(log_snr: float, config: ObjectiveConfig, schedule: Schedule, sampled: RandomTimes) -> Tensor:
    """The weights (B,), float64, with which the mean of the predicted quantity's squared error over the sampled times
    is the variational bound of latents noised to `log_snr`, in nats for each number of the latent.

    ½ ∫ -dSNR/dt ‖x0 - x̂0‖² dt over the times noisier than the fixed noise (Kingma et al. 2021, eq. 11): an expectation
    under the density of the times, whose weight it is divided by.
    """
    t, half = sampled.t, 0.5 / schedule.steps
    first, last = (t - half).clamp_min(0), (t + half).clamp_max(1)
    fall = ((2 * schedule.log_snr(first)).exp() - (2 * schedule.log_snr(last)).exp()) / (last - first)
    bound = 0.5 * fall / error_scale(config.prediction, *schedule(t))
    density = times.density(config.times, t)
    if sampled.importance is not None:
        density = density / sampled.importance.to(density)
    noisier = 2 * schedule.log_snr(t) <= log_snr
    return torch.where(noisier, bound / density.clamp_min(1e-12), 0.0)
