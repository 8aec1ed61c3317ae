"""The first stage's training losses as pure functions that the loop composes (Rombach et al. 2022, App. G, eq. 25).

The published models used L1 plus LPIPS, a log variance that belonged to no optimiser, and an adversarial term whose
weight follows the gradients at the decoder's last layer. `LossConfig` names every choice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sfumato.autoencoder.alignment import AlignmentConfig
from sfumato.autoencoder.discriminator import Norm
from sfumato.autoencoder.latent_changes import EquivarianceConfig, LatentNoiseConfig, SpectralConfig
from sfumato.autoencoder.perceptual import NoPerceptual, PerceptualConfig
from sfumato.schema import Schema

PixelLoss = Literal["l1", "l2"]
Reduction = Literal["sum", "mean"]
GanLoss = Literal["hinge", "vanilla"]


class AdversarialConfig(Schema):
    """The adversarial term and its discriminator."""

    weight: float = Field(0.5, ge=0)
    """Factor on the adaptive weight, or the weight itself; 0 switches the term and the discriminator off."""
    start: int = Field(50_001, ge=0)
    """First step at which the generator sees the discriminator."""
    warmup_steps: int = Field(0, ge=0)
    """Steps before `start` in which the discriminator trains alone; 0 as in the original."""
    ramp_steps: int = Field(0, ge=0)
    """Steps after `start` over which the generator's weight rises linearly; 0 as in the original."""
    loss: GanLoss = "hinge"
    adaptive: bool = True
    """Scale the term so that its gradient at the last layer is `weight` times the reconstruction's."""
    max_weight: float = Field(1e4, gt=0)
    """Bound of the adaptive weight, before the factor `weight`."""
    channels: int = Field(64, ge=1)
    layers: int = Field(3, ge=1)
    norm: Norm = "batch"
    lecam: float = Field(0.0, ge=0)
    """Weight of the LeCam regulariser of the discriminator; 0: none."""
    lecam_decay: float = Field(0.99, ge=0, lt=1)


class LossConfig(Schema):
    """Training losses of the first stage."""

    pixel: PixelLoss = "l1"
    perceptual: PerceptualConfig = Field(NoPerceptual(), discriminator="kind")
    reduction: Reduction = "mean"
    """mean: over all elements, as the original's VQ models; sum: over each image, as its KL models."""
    kl_weight: float = Field(1e-6, ge=0)
    codebook_weight: float = Field(1.0, ge=0)
    output_variance: bool = False
    """Learn the decoder's log variance, one number (0 at first)."""
    adversarial: AdversarialConfig = AdversarialConfig(weight=0.0)
    equivariance: EquivarianceConfig = EquivarianceConfig()
    spectral: SpectralConfig = SpectralConfig()
    latent_noise: LatentNoiseConfig = LatentNoiseConfig()
    alignment: AlignmentConfig = AlignmentConfig()

    @property
    def perceptual_weight(self) -> float:
        """Factor of the perceptual distance; 0 if there is none."""
        return 0.0 if isinstance(self.perceptual, NoPerceptual) else self.perceptual.weight


def changing_latents(config: LossConfig) -> dict[str, float]:
    """The strength of each loss that teaches the encoder other latents, by its field; 0: off."""
    return {
        "equivariance.probability": config.equivariance.probability,
        "equivariance.small_images": config.equivariance.small_images,
        "spectral.probability": config.spectral.probability,
        "alignment.weight": config.alignment.weight,
    }


# ---- reconstruction


def reconstruction(image: Tensor, reconstructed: Tensor, kind: PixelLoss = "l1") -> Tensor:
    """Error of each element, (B, C, H, W), in float32: |x − x̂| or (x − x̂)²."""
    difference = image.float() - reconstructed.float()
    return difference.abs() if kind == "l1" else difference.square()


def negative_log_likelihood(error: Tensor, reduction: Reduction = "mean", log_variance: Tensor | None = None) -> Tensor:
    """error / exp(s) + s, a scalar; s is a 0-d log variance, 0 where it is None.

    Args:
        error: (B, C, H, W); a perceptual distance (B,) is added to every element first: see with_perceptual.
        reduction: "sum" over C, H, W and mean over B, or "mean" over everything.
    """
    likelihood = error if log_variance is None else error / torch.exp(log_variance) + log_variance
    return likelihood.mean() if reduction == "mean" else likelihood.sum() / likelihood.shape[0]


def with_perceptual(error: Tensor, distance: Tensor | None, weight: float) -> Tensor:
    """error + weight · distance, the distance (B,) spread over the image as in the original; (B, C, H, W)."""
    return error if distance is None else error + weight * distance.float()[:, None, None, None]


def regularisation(config: LossConfig, kind: Literal["kl", "vq"], regulariser: Tensor, elements: int) -> Tensor:
    """The weighted latent regulariser, on the scale of the reconstruction term.

    `Encoding.regulariser` of a KL model is summed over the latent, as the reconstruction is under reduction "sum".
    Under "mean" it is divided by the elements of an image, so that kl_weight means the same in both.

    Args:
        kind: the bottleneck's kind.
        regulariser: `Encoding.regulariser`, a scalar.
        elements: C·H·W of an image.
    """
    if kind == "vq":
        return config.codebook_weight * regulariser
    return config.kl_weight * (regulariser if config.reduction == "sum" else regulariser / elements)


# ---- adversarial terms


def generator_loss(fake_logits: Tensor) -> Tensor:
    """−mean D(x̂), a scalar, for both kinds of discriminator loss as in the original."""
    return -fake_logits.float().mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, kind: GanLoss = "hinge") -> Tensor:
    """Scalar; hinge: ½ (mean relu(1 − D(x)) + mean relu(1 + D(x̂))); vanilla: of softplus(−D(x)) and softplus(D(x̂))."""
    real, fake = real_logits.float(), fake_logits.float()
    if kind == "hinge":
        return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def adaptive_weight(
    nll: Tensor,
    adversarial: Tensor,
    last_layer: Tensor,
    max_weight: float = 1e4,
    average: Callable[[Sequence[Tensor]], None] | None = None,
) -> Tensor:
    """‖∇ nll‖ / (‖∇ adversarial‖ + 1e-4) at the decoder's last layer (Esser et al. 2021, eq. 7).

    0-d float32, detached, in [0, max_weight]. Both graphs are retained for the following backward pass. A gradient
    that is not finite gives 0: that step has no adversarial term. `average` averages the gradients over the processes
    of a run, in place, so that all use the same weight.
    """
    (nll_gradient,) = torch.autograd.grad(nll, last_layer, retain_graph=True)
    (adversarial_gradient,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    if average is not None:
        average([nll_gradient, adversarial_gradient])
    ratio = nll_gradient.float().norm() / (adversarial_gradient.float().norm() + 1e-4)
    return ratio.nan_to_num(nan=0.0, posinf=0.0).clamp(0.0, max_weight).detach()


def ramp(step: int, start: int, length: int) -> float:
    """0 before start, then up to 1 over length steps: 1 from start + length on, at once if length is 0."""
    if step < start:
        return 0.0
    return 1.0 if length == 0 else min(1.0, (step - start) / length)


def discriminator_trains(config: AdversarialConfig, step: int) -> bool:
    """Whether the discriminator takes a step: from warmup_steps before start on."""
    return config.weight > 0 and step >= config.start - config.warmup_steps


def adversarial_strength(config: AdversarialConfig, step: int) -> float:
    """In [0, 1]: factor of the generator's adversarial term; where it is 0 the term need not be computed."""
    return ramp(step, config.start, config.ramp_steps) if config.weight > 0 else 0.0


@dataclass(frozen=True)
class LogitAverages:
    """Running means of the discriminator's logits, for LeCam; start with zeros."""

    real: float = 0.0
    fake: float = 0.0

    def updated(self, real_logits: Tensor, fake_logits: Tensor, decay: float) -> "LogitAverages":
        """The averages after one more batch."""
        return LogitAverages(
            real=decay * self.real + (1 - decay) * real_logits.detach().float().mean().item(),
            fake=decay * self.fake + (1 - decay) * fake_logits.detach().float().mean().item(),
        )


def lecam(real_logits: Tensor, fake_logits: Tensor, averages: LogitAverages) -> Tensor:
    """Keeps the discriminator's logits near the running mean of the other side (Tseng et al. 2021, eq. 7): a scalar."""
    real, fake = real_logits.float(), fake_logits.float()
    return F.relu(real - averages.fake).square().mean() + F.relu(averages.real - fake).square().mean()
