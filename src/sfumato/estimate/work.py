"""Floating-point operations of training steps and of sampling, forward and backward.

The backward pass of a layer costs twice its forward pass if its weights are trained and its input needs a gradient,
once if its weights are frozen. The first layer's input needs no gradient. Attention is counted without recomputation:
these are the model's operations, not the kernels'.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sfumato import flops
from sfumato.autoencoder.losses import AdversarialConfig
from sfumato.autoencoder.model import AutoencoderConfig, VQConfig
from sfumato.conditioning.condition import ConditionSpec
from sfumato.denoiser.table import build_denoiser
from sfumato.estimate.calls import network_call
from sfumato.evaluation.features import FeatureNetwork
from sfumato.model import DiffusionConfig
from sfumato.nn.init import without_weights
from sfumato.training.alignment import build_alignment
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.data import height_width
from sfumato.training.transformer import TransformerRun
from sfumato.training.workers import Workers


@dataclass(frozen=True)
class Work:
    """Operations of one sample in one training step."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Forward plus backward."""
        return self.forward + self.backward

    def __add__(self, other: "Work") -> "Work":
        return Work(self.forward + other.forward, self.backward + other.backward)


Stage1Step = Literal["generator", "discriminator warm-up", "both"]
"""The networks in a step of stage 1: the autoencoder alone; also the discriminator; also its adversarial loss."""


def phases(config: AdversarialConfig, steps: int) -> Iterator[tuple[Stage1Step, int]]:
    """The kinds of steps of a run in order, with their numbers; kinds without steps are omitted."""
    if config.weight == 0:
        yield "generator", steps
        return
    start = min(config.start, steps)
    alone = max(0, min(config.start - config.warmup_steps, steps))
    shares: tuple[tuple[Stage1Step, int], ...] = (
        ("generator", alone),
        ("discriminator warm-up", start - alone),
        ("both", steps - start),
    )
    yield from ((step_kind, count) for step_kind, count in shares if count)


def first_stage(config: AutoencoderRun, step_kind: Stage1Step) -> Work:
    """Cost of one image in a step of `sfumato train autoencoder`."""
    generator = _generator(config)
    if step_kind == "generator":
        return generator
    own_step, adversarial = _discriminator(config)
    work = generator + own_step
    if step_kind == "both":
        work += adversarial
        if config.loss.adversarial.adaptive:  # the gradients of both losses at the last layer, computed separately
            work += Work(0, _features(config).backward + adversarial.backward + 2 * _last_layer(config))
    return work


def _generator(config: AutoencoderRun) -> Work:
    """The autoencoder and its reconstruction loss."""
    model, size = config.model, height_width(config.data)
    h, w = (side // model.factor for side in size)
    network = flops.autoencoder(model)
    image, latent = flops.images(model.image_channels, size), flops.images(model.raw_channels, (h, w))
    if config.train.part == "decoder":
        network.freeze_latents()
    else:
        latent.requires_grad_(True)
    search = flops.code_search(model, h * w)
    forward = flops.encode(model, size) + flops.decode(model, size) - search  # decoded without a code search
    decoder = flops.backward_flops(lambda: network.decode(latent, quantize=False))
    backward = decoder
    if config.train.part == "whole":
        backward += flops.backward_flops(lambda: network.quant_conv(network.encoder(image)))
    features = _features(config)
    work = Work(forward, backward) + Work(2 * features.forward, features.backward)
    aligned = aligned_network(config)
    if aligned is not None:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            aligned.maps(torch.zeros(1, 3, *size))
        # the gradient of the reconstruction at the encoder's last layer is computed separately
        work += Work(counter.get_total_flops(), decoder + features.backward)
    return work


def aligned_network(config: AutoencoderRun) -> FeatureNetwork | None:
    """The frozen network that the latent is aligned with. Raises UserError if it cannot be loaded."""
    found = build_alignment(config.loss.alignment, config.model.raw_channels, config.train.seed, Workers("cpu"))
    return None if found is None else found.network


def _features(config: AutoencoderRun) -> Work:
    """The perceptual features of a reconstruction; those of the image are computed without gradients."""
    perceptual, size = config.loss.perceptual, height_width(config.data)
    forward = flops.perceptual_features(perceptual, size)
    return Work(forward, forward)  # frozen: the gradient of the input costs as much as the forward pass


def _discriminator(config: AutoencoderRun) -> tuple[Work, Work]:
    """Cost of its own step, on an image and a reconstruction; and of its pass in the autoencoder's step."""
    channels, size = config.model.image_channels, height_width(config.data)
    network = flops.discriminator(config.loss.adversarial, channels)
    image = flops.images(channels, size)
    forward = flops.forward_flops(lambda: network(image))
    learning = flops.backward_flops(lambda: network(image))
    network.requires_grad_(False)
    adversarial = flops.backward_flops(lambda: network(image.requires_grad_(True)))
    return Work(2 * forward, 2 * learning), Work(forward, adversarial)


def _last_layer(config: AutoencoderRun) -> int:
    """The gradient of the decoder's last convolution."""
    model, size = config.model, height_width(config.data)
    layer = flops.autoencoder(model).decoder.conv_out
    features = flops.images(layer.in_channels, size)
    return flops.backward_flops(lambda: layer(features))


def second_stage(config: DiffusionConfig, latent: tuple[int, int, int], spec: ConditionSpec) -> Work:
    """Cost of one latent (C, h, w) in a step of `sfumato train diffusion`; `spec` is the conditioner's."""
    forward = network_call(config, latent, spec) + flops.condition(config.conditioner)
    return Work(forward, 2 * forward - _first_convolution(config, latent, spec))


def _first_convolution(config: DiffusionConfig, latent: tuple[int, int, int], spec: ConditionSpec) -> int:
    """Forward operations of the first layer, whose input, the noisy latent, needs no gradient."""
    C, h, w = latent
    with without_weights():
        layer = build_denoiser(config.denoiser, C, spec).first_layer()
    x = flops.images(C + spec.spatial_channels, (h, w))
    return flops.forward_flops(lambda: nn.Conv2d.forward(layer, x))  # the U-Net's has another signature


def code_stage(config: TransformerRun, autoencoder: AutoencoderConfig, positions: int) -> Work:
    """Cost of one image's codes in a step of `sfumato train transformer`, without a condition."""
    assert isinstance(autoencoder.bottleneck, VQConfig)
    network = flops.code_transformer(config.transformer, autoencoder.bottleneck.codes, positions)
    return Work(network + flops.code_search(autoencoder, positions), 2 * network)


@dataclass(frozen=True)
class ImageCost:
    """Operations of sampling an image: of each network call, doubled by guidance, and of what is done once."""

    call: int
    once: int

    def of(self, calls: int) -> int:
        """Of the image, in this many calls."""
        return calls * self.call + self.once


def image(
    autoencoder: AutoencoderConfig, config: DiffusionConfig, size: tuple[int, int], spec: ConditionSpec, guided: bool
) -> ImageCost:
    """The cost of sampling one image of size (H, W)."""
    f = autoencoder.factor
    call = network_call(config, (autoencoder.raw_channels, size[0] // f, size[1] // f), spec)
    passes = 2 if guided else 1
    return ImageCost(passes * call, passes * flops.condition(config.conditioner) + flops.decode(autoencoder, size))
