"""Floating-point operations of training steps and of pictures, forward and backward.

A layer whose weights learn and whose input needs a gradient costs its forward pass twice again on the way back; a
frozen one once. The first layer's input needs none. Attention is counted without recomputation: these are the model's
operations, not the kernels'.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

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
        """Both ways."""
        return self.forward + self.backward


Players = Literal["generator", "discriminator learns", "both"]
"""Who takes part in a step of stage 1: the autoencoder alone; the discriminator too; and its judgement counts."""


def phases(config: AdversarialConfig, steps: int) -> Iterator[tuple[Players, int]]:
    """How many of a run's steps each line-up has, in order, those without any left out."""
    if config.weight == 0:
        yield "generator", steps
        return
    start = min(config.start, steps)
    alone = max(0, min(config.start - config.warmup_steps, steps))
    shares: tuple[tuple[Players, int], ...] = (
        ("generator", alone),
        ("discriminator learns", start - alone),
        ("both", steps - start),
    )
    yield from ((players, count) for players, count in shares if count)


def first_stage(config: AutoencoderRun, players: Players) -> Work:
    """Of one image in a step of `sfumato train autoencoder`."""
    model, adversarial, size = config.model, config.loss.adversarial, height_width(config.data)
    H, W = size
    search = flops.search(model, H // model.factor * (W // model.factor))
    encoding, decoding = flops.encode(model, size), flops.decode(model, size) - 2 * search  # trained without a search
    judge = flops.discriminate(adversarial, model.image_channels, size)
    features = flops.perceive(config.loss.perceptual, size)
    forward = encoding + decoding + search + 2 * features
    backward = 2 * decoding + features
    if config.train.part == "whole":
        backward += 2 * encoding - flops.conv(H, W, model.image_channels, model.channels)
    if players != "generator":
        forward += 2 * judge
        backward += 2 * (2 * judge - flops.conv(H // 2, W // 2, model.image_channels, adversarial.channels, 4))
    if players == "both":
        forward, backward = forward + judge, backward + judge
        if adversarial.adaptive:  # both gradients at the last layer, found apart
            last = flops.conv(H, W, model.channels * model.channel_multipliers[0], model.image_channels)
            backward += features + judge + 2 * last
    return Work(forward, backward)


def second_stage(config: DiffusionConfig, latent: tuple[int, int, int], spec: ConditionSpec) -> Work:
    """Of one latent (C, h, w) in a step of `sfumato train diffusion`; `spec` is the conditioner's."""
    C, h, w = latent
    steering = flops.condition(config.conditioner)
    forward = network_call(config, latent, spec) + steering
    return Work(forward, 2 * forward - flops.conv(h, w, C + spec.spatial_channels, config.denoiser.channels))


def code_stage(config: TransformerRun, autoencoder: AutoencoderConfig, positions: int) -> Work:
    """Of one picture's codes in a step of `sfumato train transformer`, steered by nothing."""
    assert isinstance(autoencoder.bottleneck, VQConfig)
    network = flops.write_codes(config.transformer, autoencoder.bottleneck.codes, positions)
    return Work(network + flops.search(autoencoder, positions), 2 * network)


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


def picture(
    autoencoder: AutoencoderConfig,
    config: DiffusionConfig,
    size: tuple[int, int],
    spec: ConditionSpec,
    calls: int,
    guided: bool,
) -> int:
    """Of one picture of size (H, W) drawn with so many network calls; guidance doubles them."""
    f = autoencoder.factor
    call = network_call(config, (autoencoder.raw_channels, size[0] // f, size[1] // f), spec)
    steering = flops.condition(config.conditioner) * (2 if guided else 1)
    return calls * (2 if guided else 1) * call + steering + flops.decode(autoencoder, size)
