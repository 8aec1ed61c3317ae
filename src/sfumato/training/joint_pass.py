"""Both stages as one forward pass, and its losses: what of which loss reaches which network, for every coupling."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sfumato import rng
from sfumato.autoencoder import losses
from sfumato.autoencoder.bottleneck import Encoding
from sfumato.autoencoder.discriminator import frozen
from sfumato.autoencoder.model import Autoencoder
from sfumato.autoencoder.scaling import Scaling
from sfumato.conditioning.condition import Fields
from sfumato.conditioning.mean import ConditionMean
from sfumato.diffusion.objective import Adaptation
from sfumato.diffusion.prediction import to_x0
from sfumato.diffusion.process import add_noise, broadcast
from sfumato.diffusion.schedule import Schedule
from sfumato.engine.precision import autocast
from sfumato.training.autoencoder import posterior_noise
from sfumato.training.averages import ema
from sfumato.training.coupling import (
    AnchoredCoupling,
    Coupling,
    DetachedCoupling,
    PriorCoupling,
    encoder_factor,
    normalises,
    reaches_encoder,
)
from sfumato.training.diffusion import ConditionalDenoiser, WithConditionMean
from sfumato.training.diffusion_run import part_dropout
from sfumato.training.joint_run import JointRun, first_stage, second_stage
from sfumato.training.micro import MicroBatch, micro_batch
from sfumato.training.stage1_losses import Stage1Modules, generator_losses
from sfumato.training.stage2_losses import stage2_losses
from sfumato.training.step_noise import StepNoise, step_noise
from sfumato.training.workers import Workers

STATISTICS_DECAY = 0.99
"""Of the running mean and deviation of the latents; lower in the first steps, as for averaged weights."""
SMALLEST_STD = 1e-6


class RunningScaling(Scaling):
    """A scaling that follows the mean and the standard deviation of latents that change during training."""

    @torch.no_grad()
    def follow(self, mean: Tensor, squares: Tensor, decay: float) -> None:
        """Moves towards a batch's mean, and its mean square about the shift so far, both (C,) float32."""
        away = mean - self.shift
        std = torch.lerp(squares - away.square(), self.scale.reciprocal().square() + (1 - decay) * away.square(), decay)
        self.scale.copy_(std.clamp_min(0).sqrt().clamp_min(SMALLEST_STD).reciprocal())
        self.shift.add_((1 - decay) * away)


class JointNetworks(nn.Module):
    """All that is trained, averaged and saved: the autoencoder, the networks of stage 2, and the scaling between."""

    def __init__(self, autoencoder: Autoencoder, networks: ConditionalDenoiser) -> None:
        super().__init__()
        channels = autoencoder.latent_channels
        self.autoencoder = autoencoder
        self.networks = networks
        self.scaling = RunningScaling(torch.zeros(channels), torch.ones(channels))


@dataclass(frozen=True)
class JointNoise:
    """The random numbers of a micro-batch of B images: of stage 2 for B · draws latents; the posterior's (B, C, h, w),
    None for a deterministic encoder; the decoder's noise (B, C, h, w) and its times (B,)."""

    second: StepNoise
    posterior: Tensor | None
    decoder: Tensor
    decoder_times: Tensor


@dataclass(frozen=True)
class JointOutput:
    """The results of a forward pass.

    Attributes:
        encoding: of the images.
        output: their reconstructions (B, 3, H, W).
        latent: (B, C, h, w), of stage 2, before it is normalised.
        entered: (B · draws, C, h, w), the latents as stage 2's loss sees them; the gradient here is what the encoder
            gets of it. None where none reaches it.
        prediction: of the denoiser, with the predicted mean where there is a head.
        micro: what the prediction is compared with.
        expected: the decoded expected image of each image's first draw, (B, 3, H, W), and its weight (B,); None but
            for kind anchored.
    """

    encoding: Encoding
    output: Tensor
    latent: Tensor
    entered: Tensor | None
    prediction: Tensor | tuple[Tensor, Tensor]
    micro: MicroBatch
    expected: tuple[Tensor, Tensor] | None


class JointPass(nn.Module):
    """Everything that gets gradients, as one module, so that they are averaged over processes together."""

    def __init__(
        self,
        config: JointRun,
        joint: JointNetworks,
        log_variance: nn.ParameterList,
        head: ConditionMean | None,
        schedule: Schedule,
    ) -> None:
        super().__init__()
        self.config, self.schedule = config, schedule
        self.joint = joint
        self.log_variance = log_variance
        self.predictor: nn.Module = joint.networks if head is None else WithConditionMean(joint.networks, head)

    def forward(self, image: Tensor, noise: JointNoise, fields: Fields) -> JointOutput:
        """Images (B, 3, H, W) and the prepared fields of B · draws samples -> both stages' outputs."""
        coupling, autoencoder = self.config.coupling, self.joint.autoencoder
        encoding = autoencoder.encode(image, noise.posterior)
        if isinstance(coupling, PriorCoupling):  # without a posterior there is no KL term
            encoding = replace(encoding, regulariser=torch.zeros_like(encoding.regulariser))
        output = autoencoder.decode(decoded_latent(coupling, self.joint.scaling, encoding.z, noise))

        mean = self.config.objective.latents == "mean"
        latent = autoencoder.latent_from_moments(encoding.moments) if mean else encoding.z
        x0 = self.joint.scaling.to_model(latent) if normalises(coupling) else latent
        every = x0.repeat_interleave(self.config.train.draws, dim=0)
        entered = every if reaches_encoder(coupling) else None
        micro = micro_batch(self.schedule, every if entered is not None else every.detach(), noise.second, fields)
        prediction = self.predictor(micro.x_t, micro.timestep, micro.fields, micro.keep)
        expected = self._expected(x0, micro) if isinstance(coupling, AnchoredCoupling) else None
        return JointOutput(encoding, output, latent.detach(), entered, prediction, micro, expected)

    def _expected(self, x0: Tensor, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """The decoded expected image of each image's first draw, by the decoder as it is, and the draw's alpha²."""
        first = slice(None, None, self.config.train.draws)
        t, keep = micro.times.t[first], micro.keep
        x_t = add_noise(self.schedule, x0, micro.noise[first], t).contiguous(memory_format=torch.channels_last)
        fields = {name: value[first] for name, value in micro.fields.items()}
        kept = {name: one[first] for name, one in keep.items()} if isinstance(keep, dict) else keep
        kept = kept[first] if isinstance(kept, Tensor) else kept
        prediction = self.joint.networks(x_t, micro.timestep[first], fields, kept)
        alpha, sigma = self.schedule(t)
        clean = to_x0(self.config.objective.prediction, prediction.float(), x_t, alpha, sigma)
        with frozen(self.joint.autoencoder):
            image = self.joint.autoencoder.decode(self.joint.scaling.to_raw(clean))
        return image, alpha.square()


def decoded_latent(coupling: Coupling, scaling: Scaling, z: Tensor, noise: JointNoise) -> Tensor:
    """The decoder's input (B, C, h, w), from the raw latent z."""
    match coupling:
        case DetachedCoupling():
            t = broadcast(noise.decoder_times, z)
            return scaling.to_raw((1 - t) * scaling.to_model(z) + t * noise.decoder.to(z))
        case PriorCoupling():
            return z + torch.exp(torch.tensor(-coupling.log_snr / 2)).to(z) * noise.decoder.to(z)
        case _:
            return z


def forward_backward(
    config: JointRun,
    modules: Stage1Modules,
    adaptation: Adaptation,
    passed: nn.Module,
    image: Tensor,
    noise: JointNoise,
    fields: Fields,
    dropout: tuple[str | int, ...],
    schedule: Schedule,
    workers: Workers,
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Adds a micro-batch's gradients to both networks; returns the latents (B, C, h, w) of stage 2, detached, the terms
    of the losses for the log, and the losses (B · draws,) to record in the history.

    image (B, 3, H, W); `fields` are the prepared ones of B · draws samples; `dropout` names the stream of dropout.
    """
    train, coupling = config.train, config.coupling
    with autocast(workers.device, train.precision), rng.seeded(train.seed, *dropout, device=image.device):
        out: JointOutput = passed(image, noise, fields)
        total, terms = generator_losses(config.loss, modules, image, out.output, out.encoding, 0.0, workers)
    second = stage2_losses(config.objective, schedule, adaptation, out.prediction, out.micro)
    total = total + second.total(config.objective)
    terms |= {"loss": second.adapted.mean(), "loss_condition_mean": second.means.mean()}
    if out.entered is not None:
        numbers = out.latent[0].numel() / image[0].numel()
        factor = encoder_factor(coupling, config.objective, schedule, out.micro.times, second, numbers)
        out.entered.register_hook(lambda gradient: gradient * broadcast(factor, gradient))
    if out.expected is not None and isinstance(coupling, AnchoredCoupling):
        expected, weight = out.expected
        error = losses.reconstruction(image, expected, config.loss.pixel).flatten(1).mean(1)
        terms["anchor"] = (weight.to(error) * error).mean()
        total = total + coupling.weight * terms["anchor"]
    (total / train.accumulate).backward()
    return out.latent, {name: value.detach() for name, value in terms.items()}, second.recorded


def joint_noise(
    config: JointRun,
    schedule: Schedule,
    adaptation: Adaptation,
    latent: tuple[int, int, int],
    conditional: bool,
    step: int,
    workers: Workers,
) -> list[JointNoise]:
    """The random numbers of each micro-batch of a step on latents (C, h, w): this rank's rows of the whole step's."""
    train, coupling = config.train, config.coupling
    first, second = first_stage(config), second_stage(config)
    rows = (train.accumulate, workers.world, train.batch)
    posterior = posterior_noise(first, latent[1:], step, workers)
    if isinstance(coupling, PriorCoupling):
        posterior = [None] * train.accumulate
    g = rng.generator(train.seed, "decoder times", step)
    times = torch.rand(*rows, generator=g)
    if isinstance(coupling, DetachedCoupling):
        times = times * coupling.noise * (torch.rand(*rows, generator=g) < coupling.share)
    decoder = rng.OwnRows(rng.generator(train.seed, "decoder noise", step), rows, workers.rank)(latent)
    # the mean of the posterior: its samples, where there are any, are drawn once an image
    on_mean = config.objective.model_copy(update={"latents": "mean"})
    dropout = train.condition_dropout if conditional else 0.0
    parts = part_dropout(second)
    noises = step_noise(second.train, on_mean, schedule, latent, dropout, step, workers, adaptation.history, parts)
    own = (t.to(workers.device, non_blocking=True) for t in (decoder, times[:, workers.rank]))
    return [JointNoise(*parts_of) for parts_of in zip(noises, posterior, *own, strict=True)]


def latent_moments(latent: Tensor, scaling: Scaling) -> Tensor:
    """The mean of latents (B, C, h, w), and their mean square about the scaling's shift: (2, C) float32."""
    centred = latent.float() - scaling.shift[:, None, None]
    return torch.stack([latent.float().mean((0, 2, 3)), centred.square().mean((0, 2, 3))])


def follow_latents(scaling: RunningScaling, moments: Tensor, update: int) -> None:
    """Updates the running scaling with a step's moments (2, C); `update` counts from 1."""
    scaling.follow(moments[0], moments[1], ema.decay_at(update, STATISTICS_DECAY))


def spread_of(moments: Tensor, shift: Tensor) -> Tensor:
    """The standard deviation (C,) of each channel in a step, from its moments (2, C) about a shift (C,)."""
    return (moments[1] - (moments[0] - shift).square()).clamp_min(0).sqrt()
