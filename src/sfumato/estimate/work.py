"""Floating-point operations of training steps and of images, forward and backward.

A layer whose weights learn and whose input needs a gradient costs its forward pass twice again on the way back; a
frozen one once. The first layer's input needs none. Attention is counted without recomputation: these are the model's
operations, not the kernels'.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sfumato import flops
from sfumato.autoencoder.losses import AdversarialConfig
from sfumato.autoencoder.model import AutoencoderConfig, VQConfig
from sfumato.conditioning.condition import ConditionSpec
from sfumato.diffusion.schedule import Schedule
from sfumato.model import DiffusionConfig
from sfumato.rng import SampleNoise
from sfumato.sampling.grids import build_grid
from sfumato.sampling.loop import sample
from sfumato.sampling.table import SamplerConfig, build_sampler, default_grid
from sfumato.training.autoencoder import AutoencoderRun
from sfumato.training.data import height_width
from sfumato.training.transformer import TransformerRun


@dataclass(frozen=True)
class Work:
    """Operations of one sample in one training step."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Both passes."""
        return self.forward + self.backward

    def __add__(self, other: "Work") -> "Work":
        return Work(self.forward + other.forward, self.backward + other.backward)


Stage1Step = Literal["generator", "discriminator learns", "both"]
"""Who takes part in a step of stage 1: the autoencoder alone; the discriminator too; and its judgement counts."""


def phases(config: AdversarialConfig, steps: int) -> Iterator[tuple[Stage1Step, int]]:
    """How many of a run's steps each line-up has, in order, those without any left out."""
    if config.weight == 0:
        yield "generator", steps
        return
    start = min(config.start, steps)
    alone = max(0, min(config.start - config.warmup_steps, steps))
    shares: tuple[tuple[Stage1Step, int], ...] = (
        ("generator", alone),
        ("discriminator learns", start - alone),
        ("both", steps - start),
    )
    yield from ((players, count) for players, count in shares if count)


def first_stage(config: AutoencoderRun, players: Stage1Step) -> Work:
    """Of one image in a step of `sfumato train autoencoder`."""
    generator = _generator(config)
    if players == "generator":
        return generator
    learning, judging = _discriminator(config)
    work = generator + learning
    if players == "both":
        work += judging
        if config.loss.adversarial.adaptive:  # both gradients at the last layer, found apart
            work += Work(0, _features(config).backward + judging.backward + 2 * _last_layer(config))
    return work


def _generator(config: AutoencoderRun) -> Work:
    """The autoencoder through the reconstruction's loss."""
    model, size = config.model, height_width(config.data)
    h, w = (side // model.factor for side in size)
    network = flops.autoencoder(model)
    image, latent = flops.images(model.image_channels, size), flops.images(model.raw_channels, (h, w))
    if config.train.part == "decoder":
        network.freeze_latents()
    else:
        latent.requires_grad_(True)
    search = flops.code_search(model, h * w)
    forward = flops.encode(model, size) + flops.decode(model, size) - search  # decoded without a search
    backward = flops.backward_flops(lambda: network.decode(latent, quantize=False))
    if config.train.part == "whole":
        backward += flops.backward_flops(lambda: network.quant_conv(network.encoder(image)))
    features = _features(config)
    return Work(forward, backward) + Work(2 * features.forward, features.backward)


def _features(config: AutoencoderRun) -> Work:
    """The perceptual features of a reconstruction; those of the image are computed without gradients."""
    perceptual, size = config.loss.perceptual, height_width(config.data)
    forward = flops.perceptual_features(perceptual, size)
    return Work(forward, forward)  # frozen: the gradient of the input costs what the forward pass does


def _discriminator(config: AutoencoderRun) -> tuple[Work, Work]:
    """Its own step, on an image and a reconstruction; and its pass within the autoencoder's step."""
    channels, size = config.model.image_channels, height_width(config.data)
    network = flops.discriminator(config.loss.adversarial, channels)
    image = flops.images(channels, size)
    forward = flops.forward_flops(lambda: network(image))
    learning = flops.backward_flops(lambda: network(image))
    network.requires_grad_(False)
    judging = flops.backward_flops(lambda: network(image.requires_grad_(True)))
    return Work(2 * forward, 2 * learning), Work(forward, judging)


def _last_layer(config: AutoencoderRun) -> int:
    """The gradient of the decoder's last convolution."""
    model, size = config.model, height_width(config.data)
    layer = flops.autoencoder(model).decoder.conv_out
    features = flops.images(layer.in_channels, size)
    return flops.backward_flops(lambda: layer(features))


def second_stage(config: DiffusionConfig, latent: tuple[int, int, int], spec: ConditionSpec) -> Work:
    """Of one latent (C, h, w) in a step of `sfumato train diffusion`; `spec` is the conditioner's."""
    forward = network_call(config, latent, spec) + flops.condition(config.conditioner)
    return Work(forward, 2 * forward - _first_convolution(config, latent, spec))


def _first_convolution(config: DiffusionConfig, latent: tuple[int, int, int], spec: ConditionSpec) -> int:
    """Whose input, the noisy latent, needs no gradient."""
    C, h, w = latent
    with flops.META:
        layer = nn.Conv2d(C + spec.spatial_channels, config.denoiser.channels, 3, padding=1)
    x = flops.images(C + spec.spatial_channels, (h, w))
    return flops.forward_flops(lambda: layer(x))


def code_stage(config: TransformerRun, autoencoder: AutoencoderConfig, positions: int) -> Work:
    """Of one image's codes in a step of `sfumato train transformer`, without a condition."""
    assert isinstance(autoencoder.bottleneck, VQConfig)
    network = flops.code_transformer(config.transformer, autoencoder.bottleneck.codes, positions)
    return Work(network + flops.code_search(autoencoder, positions), 2 * network)


def network_call(config: DiffusionConfig, latent: tuple[int, int, int], spec: ConditionSpec) -> int:
    """Of the denoiser, once, for one latent (C, h, w)."""
    return flops.denoise(config.denoiser, latent[0], spec, latent[1:], flops.condition_tokens(config.conditioner))


def network_calls(sampler: SamplerConfig, schedule: Schedule, steps: int) -> int:
    """How often a sampler asks for the expected clean latent in so many steps: it is walked, with numbers for latents.

    Raises UserError where the sampler cannot take so many.
    """
    calls = 0

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.zeros_like(x_t)

    grid = build_grid(default_grid(sampler, schedule), schedule, steps)
    noise = SampleNoise([0])
    sample(build_sampler(sampler), schedule, denoise, noise((1, 1, 1, 1)), grid, noise)
    return calls


def image(
    autoencoder: AutoencoderConfig,
    config: DiffusionConfig,
    size: tuple[int, int],
    spec: ConditionSpec,
    calls: int,
    guided: bool,
) -> int:
    """Of one image of size (H, W) drawn with so many network calls; guidance doubles them."""
    f = autoencoder.factor
    call = network_call(config, (autoencoder.raw_channels, size[0] // f, size[1] // f), spec)
    steering = flops.condition(config.conditioner) * (2 if guided else 1)
    return calls * (2 if guided else 1) * call + steering + flops.decode(autoencoder, size)
