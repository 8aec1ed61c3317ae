"""The networks of stage 1 as a step calls them, and the losses between them (section 3.1, App. G)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sfumato.autoencoder import losses
from sfumato.autoencoder.bottleneck import Encoding
from sfumato.autoencoder.discriminator import PatchDiscriminator, frozen
from sfumato.autoencoder.latent_changes import LatentChange
from sfumato.autoencoder.losses import AdversarialConfig, LogitAverages, LossConfig
from sfumato.autoencoder.model import Autoencoder
from sfumato.autoencoder.perceptual import FeatureDistance
from sfumato.training.alignment import LatentAlignment
from sfumato.training.codebook import CodeCounts
from sfumato.training.workers import Workers


@dataclass(frozen=True)
class Stage1Modules:
    """The networks of stage 1; `log_variance` holds the learned output variance as one parameter."""

    autoencoder: Autoencoder
    discriminator: PatchDiscriminator | None
    perceptual: FeatureDistance | None
    log_variance: nn.ParameterList
    counts: CodeCounts
    alignment: LatentAlignment | None = None

    @property
    def trained(self) -> tuple[nn.Module, ...]:
        """The modules that the generator's optimizer updates; the map to the features of the alignment comes last."""
        mapping = () if self.alignment is None else (self.alignment.mapping,)
        return self.autoencoder, self.log_variance, *mapping


class AutoencoderPass(nn.Module):
    """All that gets gradients of the generator's loss, as one module, so that they are averaged over processes
    together."""

    def __init__(
        self, autoencoder: Autoencoder, log_variance: nn.ParameterList, mapping: nn.Conv2d | None = None
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.log_variance = log_variance
        self.mapping = mapping

    def forward(
        self, image: Tensor, noise: Tensor | None, change: LatentChange
    ) -> tuple[Encoding, Tensor, Tensor | None]:
        """Image (B, C, H, W) -> its encoding, the reconstruction of the changed latent, and the latent mapped to the
        features that it is aligned with, (B, D, h, w), where it is."""
        if noise is not None:
            f = self.autoencoder.factor
            noise = noise[..., : image.shape[-2] // f, : image.shape[-1] // f]
        encoding = self.autoencoder.encode(image, noise)
        mapped = None if self.mapping is None else self.mapping(encoding.z)
        return encoding, self.autoencoder.decode(change.latent(encoding.z), quantize=False), mapped


class DiscriminatorPass(nn.Module):
    """Both calls of the discriminator's step in one forward pass, so that one backward pass ends it."""

    def __init__(self, discriminator: PatchDiscriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, image: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """Image and reconstruction (B, C, H, W), detached here -> the logits of both."""
        return self.discriminator(image), self.discriminator(output.detach())


@dataclass(frozen=True)
class Passes:
    """The two forward passes as a step calls them: under DistributedDataParallel where there are several processes."""

    autoencoder: nn.Module
    discriminator: nn.Module | None


@dataclass(frozen=True)
class AdversarialPhase:
    """The adversarial term in a step: its strength in [0, 1], whether the discriminator trains, the logits' means."""

    strength: float
    discriminator_trains: bool
    averages: LogitAverages


def generator_losses(
    config: LossConfig,
    modules: Stage1Modules,
    image: Tensor,
    output: Tensor,
    encoding: Encoding,
    strength: float,
    workers: Workers,
    elements: int | None = None,
    aligned: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the autoencoder, and its terms for the log.

    image, output (B, C, H, W); `strength` in [0, 1] scales the adversarial term, which is not computed at 0;
    `elements` of the image that was encoded, where that is another size; `aligned` the loss of the latent's alignment.
    """
    error = losses.reconstruction(image, output, config.pixel)
    terms = {"reconstruction": error.mean()}
    if modules.perceptual is not None:
        distance = modules.perceptual(output, image)
        terms["perceptual"] = distance.mean()
        error = losses.with_perceptual(error, distance, config.perceptual_weight)
    variance = next(iter(modules.log_variance), None)
    nll = losses.negative_log_likelihood(error, config.reduction, variance)
    terms |= {"nll": nll, "regulariser": encoding.regulariser}
    kind: Literal["kl", "vq"] = "kl" if modules.autoencoder.variational else "vq"
    total = nll + losses.regularisation(config, kind, encoding.regulariser, elements or image[0].numel())
    if modules.discriminator is not None and strength > 0:
        with frozen(modules.discriminator):
            adversarial = losses.generator_loss(modules.discriminator(output))
        weight = torch.ones((), device=nll.device)
        if config.adversarial.adaptive:
            last = modules.autoencoder.last_layer()
            weight = losses.adaptive_weight(nll, adversarial, last, config.adversarial.max_weight, workers.average)
        total = total + config.adversarial.weight * strength * weight * adversarial
        terms |= {"adversarial": adversarial, "adaptive_weight": weight}
    if aligned is not None:
        last = modules.autoencoder.encoder.conv_out.weight
        weight = losses.adaptive_weight(nll, aligned, last, average=workers.average)
        total = total + config.alignment.weight * weight * aligned
        terms |= {"alignment": aligned, "alignment_weight": weight}
    if variance is not None:
        terms["log_variance"] = variance
    return total, {name: value.detach() for name, value in terms.items()}


def discriminator_losses(
    config: AdversarialConfig, real: Tensor, fake: Tensor, averages: LogitAverages
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the discriminator, and its terms for the log, from its logits of images and reconstructions."""
    total = losses.discriminator_loss(real, fake, config.loss)
    terms = {"discriminator": total, "logits_real": real.float().mean(), "logits_fake": fake.float().mean()}
    if config.lecam > 0:
        total = total + config.lecam * losses.lecam(real, fake, averages)
    return total, {name: value.detach() for name, value in terms.items()}
