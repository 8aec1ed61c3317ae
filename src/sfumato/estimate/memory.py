"""Memory of a training: what its parameters take four times over, and what a step keeps for its way back."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sfumato import flops
from sfumato.autoencoder.discriminator import PatchDiscriminator
from sfumato.autoencoder.losses import LogitAverages
from sfumato.autoencoder.perceptual import LPIPS, EfficientNetConfig, EfficientNetFeatures, FeatureDistance, LPIPSConfig
from sfumato.conditioning.condition import Condition, Conditioner, ConditionSpec
from sfumato.conditioning.table import CompositeConfig, ConditionerConfig, build_conditioner
from sfumato.conditioning.text import TextConfig
from sfumato.denoiser.table import build_denoiser
from sfumato.denoiser.unet import UNet
from sfumato.estimate.work import Stage1Step
from sfumato.model import DiffusionConfig
from sfumato.training.autoencoder import (
    AutoencoderRun,
    CodeCounts,
    DiscriminatorPass,
    Stage1Modules,
    discriminator_losses,
    generator_losses,
    untrained_autoencoder,
)
from sfumato.training.data import height_width
from sfumato.training.workers import Workers

UNKNOWN_TOKENS = 77
"""Taken where a pretrained text encoder alone knows how many tokens it gives: CLIP's."""
FLOAT = 4
"""Bytes: weights, gradients, moments and averages are float32 whatever the networks compute in."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a training, in the device's memory; `activations` are what the largest step keeps."""

    weights: int
    gradients: int
    optimiser: int
    averages: int
    activations: int

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.gradients + self.optimiser + self.averages + self.activations


def memory_of(
    learning: Iterable[nn.Module | None],
    averaged: Iterable[nn.Module | None],
    frozen: Iterable[nn.Module | None],
    moments: int,
    activations: int,
) -> Memory:
    """From the modules that learn, those of them whose average is kept, those that stay as they are, and how many
    numbers the optimiser keeps."""
    learning = list(learning)
    weights, kept = parameters(learning) + parameters(frozen), parameters(averaged, trainable=True)
    gradients = parameters(learning, trainable=True)
    return Memory(FLOAT * weights, FLOAT * gradients, FLOAT * moments, FLOAT * kept, activations)


def parameters(modules: Iterable[nn.Module | None], trainable: bool = False) -> int:
    """How many numbers the modules have, or only those that learn."""
    every = (p for module in modules if module is not None for p in module.parameters())
    return sum(p.numel() for p in every if p.requires_grad or not trainable)


# ---- networks without weights


def build_unwritten(config: ConditionerConfig) -> Conditioner | None:
    """The conditioner of a configuration without data: the most tokens that it may have, one class if data names them.

    Raises UserError where a pretrained encoder is not at hand.
    """
    return build_conditioner(_without_data(config))


def _without_data(config: Any) -> Any:
    if isinstance(config, TextConfig):
        return config.model_copy(update={"tokenizer": "none"})
    if isinstance(config, CompositeConfig):
        parts = {name: _without_data(part) for name, part in config.parts.items()}
        return config.model_copy(update={"parts": parts})
    if getattr(config, "classes", None) == 0:
        return config.model_copy(update={"classes": 1})
    return config


def perceptual_network(config: AutoencoderRun) -> FeatureDistance | None:
    """The network of the perceptual distance with its shapes; LPIPS needs no files for that."""
    match config.loss.perceptual:
        case LPIPSConfig():
            return LPIPS()
        case EfficientNetConfig():
            return EfficientNetFeatures()
    return None


def discriminator_of(config: AutoencoderRun) -> PatchDiscriminator | None:
    """The discriminator of a run, None where it has none."""
    judge = config.loss.adversarial
    if judge.weight == 0:
        return None
    return PatchDiscriminator(config.model.image_channels, judge.channels, judge.layers, judge.norm)


# ---- what a step keeps


def saved_for_backward(step: Callable[[], object], weights: Iterable[nn.Module | None]) -> int:
    """Bytes of the tensors that `step` saves for its backward pass, each memory once, the weights not counted."""
    known = {p.untyped_storage()._cdata for module in weights if module is not None for p in module.parameters()}
    kept: list[Tensor] = []
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in known:
            kept.append(tensor)  # alive, so that no other takes its place in memory and its key
            sizes[key] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(sizes.values())


def first_stage_activations(config: AutoencoderRun, players: Stage1Step, bfloat16: bool) -> int:
    """Bytes that a step of stage 1 keeps at its largest, found on tensors without content."""
    H, W = height_width(config.data)
    perceptual = perceptual_network(config)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", torch.bfloat16, bfloat16):
        networks = Stage1Modules(
            untrained_autoencoder(config),
            discriminator_of(config) if players != "generator" else None,
            perceptual,
            nn.ParameterList([torch.zeros(())] if config.loss.output_variance else []),
            CodeCounts(0),
        )
        image = torch.zeros(config.train.batch, config.model.image_channels, H, W)

        def step() -> object:
            encoding = networks.autoencoder.encode(image)
            output = networks.autoencoder.decode(encoding.z, quantize=False)
            strength = float(players == "both")
            flat = config.loss.model_copy(
                update={"adversarial": config.loss.adversarial.model_copy(update={"adaptive": False})}
            )
            kept = [generator_losses(flat, networks, image, output, encoding, strength, Workers("cpu"))]
            if networks.discriminator is not None:
                real, fake = DiscriminatorPass(networks.discriminator)(image, output)
                kept.append(discriminator_losses(flat.adversarial, real, fake, LogitAverages()))
            return kept

        weights = (networks.autoencoder, networks.discriminator, networks.perceptual)
        return saved_for_backward(step, weights)


def second_stage_activations(
    config: DiffusionConfig,
    latent: tuple[int, int, int],
    spec: ConditionSpec,
    batch: int,
    bfloat16: bool,
    checkpointing: bool = False,
) -> int:
    """Bytes that a step of stage 2 keeps for the denoiser on latents (C, h, w); the conditioner's are not counted.

    With `checkpointing` those are the inputs of its blocks, and what the largest block keeps while it is done again.
    """
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, bfloat16):
        denoiser = build_denoiser(config.denoiser, latent[0], spec)
        condition = blank_condition(config.conditioner, spec, batch, latent[1:])
        x_t, t = torch.zeros(batch, *latent), torch.zeros(batch)
        again = Recomputed(denoiser) if checkpointing else None
        kept = saved_for_backward(lambda: denoiser(x_t, t, condition), [denoiser])
        return kept if again is None else kept + again.bytes


def blank_condition(config: ConditionerConfig, spec: ConditionSpec, batch: int, latent: tuple[int, int]) -> Condition:
    """A condition of the right shape and no content, for latents of size (h, w)."""
    M = flops.condition_tokens(config) or UNKNOWN_TOKENS
    return Condition(
        vector=None if spec.vector_dim is None else torch.zeros(batch, spec.vector_dim),
        tokens=None if spec.token_dim is None else torch.zeros(batch, M, spec.token_dim),
        spatial=torch.zeros(batch, spec.spatial_channels, *latent) if spec.spatial_channels else None,
    )


class Recomputed:
    """Watches the blocks of a U-Net as if each were computed again in the backward pass."""

    def __init__(self, denoiser: UNet) -> None:
        self.inputs = 0
        self.largest = 0
        for block in (*denoiser.input_blocks, denoiser.middle_block, *denoiser.output_blocks):
            self._watch(block, denoiser)

    @property
    def bytes(self) -> int:
        """What the step keeps inside of the blocks at its largest."""
        return self.inputs + self.largest

    def _watch(self, block: nn.Module, weights: nn.Module) -> None:
        plain = block.forward

        def forward(h: Tensor, *arguments: object) -> object:
            made: list[object] = []
            self.inputs += h.untyped_storage().nbytes()
            inside = saved_for_backward(lambda: made.append(plain(h, *arguments)), [weights])
            self.largest = max(self.largest, inside)
            return made[0]

        block.forward = forward
