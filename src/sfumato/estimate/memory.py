"""Training memory: weights, gradients, Adam moments and EMA, plus activations kept for backward."""

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
from sfumato.denoiser.network import Denoiser
from sfumato.denoiser.table import build_denoiser
from sfumato.estimate.work import Stage1Step
from sfumato.model import DiffusionConfig
from sfumato.training.autoencoder import CodeCounts, untrained_autoencoder
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.data import height_width
from sfumato.training.stage1_losses import DiscriminatorPass, Stage1Modules, discriminator_losses, generator_losses
from sfumato.training.workers import Workers

UNKNOWN_TOKENS = 77
"""Assumed number of tokens of a pretrained text encoder: that of CLIP."""
FLOAT = 4
"""Bytes per number: weights, gradients, moments and averages are float32 in every precision."""


@dataclass(frozen=True)
class Memory:
    """Bytes of device memory during training; `activations` are those that the largest step keeps for backward."""

    weights: int
    gradients: int
    optimiser: int
    averages: int
    activations: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.gradients + self.optimiser + self.averages + self.activations


def memory_of(
    trained: Iterable[nn.Module | None],
    averaged: Iterable[nn.Module | None],
    frozen: Iterable[nn.Module | None],
    moments: int,
    activations: int,
) -> Memory:
    """Memory from the trained modules, those of them with an EMA, the frozen modules, and the number of optimiser
    moments."""
    trained = list(trained)
    weights, averages = parameters(trained) + parameters(frozen), parameters(averaged, trainable=True)
    gradients = parameters(trained, trainable=True)
    return Memory(FLOAT * weights, FLOAT * gradients, FLOAT * moments, FLOAT * averages, activations)


def parameters(modules: Iterable[nn.Module | None], trainable: bool = False) -> int:
    """Number of parameters of the modules, optionally of trainable ones only."""
    every = (p for module in modules if module is not None for p in module.parameters())
    return sum(p.numel() for p in every if p.requires_grad or not trainable)


# ---- networks without weights


def build_meta_conditioner(config: ConditionerConfig) -> Conditioner | None:
    """Builds a conditioner without data: with the maximum number of tokens, and one class if the data defines them.

    Raises UserError if a pretrained encoder is not available.
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
    """The network of the perceptual distance, for its shapes only; LPIPS needs no weight files here."""
    match config.loss.perceptual:
        case LPIPSConfig():
            return LPIPS()
        case EfficientNetConfig():
            return EfficientNetFeatures()
    return None


def discriminator_of(config: AutoencoderRun) -> PatchDiscriminator | None:
    """The discriminator of a run; None if it has none."""
    discriminator = config.loss.adversarial
    if discriminator.weight == 0:
        return None
    return PatchDiscriminator(
        config.model.image_channels, discriminator.channels, discriminator.layers, discriminator.norm
    )


# ---- activations kept for backward


def saved_for_backward(step: Callable[[], object], weights: Iterable[nn.Module | None]) -> int:
    """Bytes of the tensors that `step` saves for its backward pass, each memory once, the weights not counted."""
    known = {p.untyped_storage()._cdata for module in weights if module is not None for p in module.parameters()}
    kept: list[Tensor] = []
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in known:
            kept.append(tensor)  # stays alive, so that no other tensor reuses its memory and key
            sizes[key] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(sizes.values())


def first_stage_activations(config: AutoencoderRun, step_kind: Stage1Step, bfloat16: bool) -> int:
    """Bytes that the largest step of stage 1 keeps for backward, computed on fake tensors."""
    H, W = height_width(config.data)
    perceptual = perceptual_network(config)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", torch.bfloat16, bfloat16):
        networks = Stage1Modules(
            untrained_autoencoder(config),
            discriminator_of(config) if step_kind != "generator" else None,
            perceptual,
            nn.ParameterList([torch.zeros(())] if config.loss.output_variance else []),
            CodeCounts(0),
        )
        image = torch.zeros(config.train.batch, config.model.image_channels, H, W)

        def step() -> object:
            encoding = networks.autoencoder.encode(image)
            output = networks.autoencoder.decode(encoding.z, quantize=False)
            adversarial = float(step_kind == "both")
            flat = config.loss.model_copy(
                update={"adversarial": config.loss.adversarial.model_copy(update={"adaptive": False})}
            )
            kept = [generator_losses(flat, networks, image, output, encoding, adversarial, Workers("cpu"))]
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

    With `checkpointing` these are the inputs of its blocks, plus what the largest block keeps while it is recomputed.
    """
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, bfloat16):
        denoiser = build_denoiser(config.denoiser, latent[0], spec)
        condition = blank_condition(config.conditioner, spec, batch, latent[1:])
        x_t, t = torch.zeros(batch, *latent), torch.zeros(batch)
        again = Recomputed(denoiser) if checkpointing else None
        kept = saved_for_backward(lambda: denoiser(x_t, t, condition), [denoiser])
        return kept if again is None else kept + again.bytes


def blank_condition(config: ConditionerConfig, spec: ConditionSpec, batch: int, latent: tuple[int, int]) -> Condition:
    """A condition of the right shape, all zeros, for latents of size (h, w)."""
    M = flops.condition_tokens(config) or UNKNOWN_TOKENS
    return Condition(
        vector=None if spec.vector_dim is None else torch.zeros(batch, spec.vector_dim),
        tokens=None if spec.token_dim is None else torch.zeros(batch, M, spec.token_dim),
        spatial=torch.zeros(batch, spec.spatial_channels, *latent) if spec.spatial_channels else None,
    )


class Recomputed:
    """Measures the activations of a denoiser whose blocks are recomputed in the backward pass."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.inputs = 0
        self.largest = 0
        for block in denoiser.recomputed_blocks():
            self._watch(block, denoiser)

    @property
    def bytes(self) -> int:
        """Bytes of the blocks' inputs, plus the activations inside the largest block."""
        return self.inputs + self.largest

    def _watch(self, block: nn.Module, weights: nn.Module) -> None:
        plain = block.forward

        def forward(h: Tensor, *arguments: object) -> object:
            outputs: list[object] = []
            self.inputs += h.untyped_storage().nbytes()
            inside = saved_for_backward(lambda: outputs.append(plain(h, *arguments)), [weights])
            self.largest = max(self.largest, inside)
            return outputs[0]

        block.forward = forward
