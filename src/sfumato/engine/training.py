"""Faster training steps: `for_training` swaps blocks for fused ones in place, `plain` swaps them back.

Only the classes of submodules change: the parameter objects, their names, hooks and the modules themselves stay, so
that optimisers, averages and checkpoints made before or after are unaffected. Every fused block falls back to torch's
operations for tensors that its kernels do not support (other devices, other memory formats) and where there are no
kernels.
"""

import itertools
from typing import TypeVar

import torch
from torch import Tensor, nn

from sfumato.autoencoder import convnet
from sfumato.denoiser import blocks, dit
from sfumato.engine import fused_autoencoder, fused_denoiser, fused_transformer
from sfumato.engine.groupnorm import norm
from sfumato.engine.tokens import layer_norm
from sfumato.engine.winograd import FilteredConv2d
from sfumato.nn import transformer
from sfumato.nn.norm import GroupNorm32

M = TypeVar("M", bound=nn.Module)


class FusedNorm(nn.GroupNorm):
    """A norm without a directly following SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        return norm(self, x)


class FusedLayerNorm(nn.LayerNorm):
    """Over the last axis, with weight and bias."""

    def forward(self, x: Tensor) -> Tensor:
        if len(self.normalized_shape) != 1 or self.weight is None or self.bias is None:
            return super().forward(x)
        return layer_norm(x, self.weight, self.bias, self.eps)


class FusedNormSiLU(nn.GroupNorm):
    """Includes the SiLU that follows it."""

    def forward(self, x: Tensor) -> Tensor:
        return norm(self, x, silu=True)


class FusedNorm32(GroupNorm32):
    """As FusedNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return norm(self, x)


class FusedNorm32SiLU(GroupNorm32):
    """As FusedNormSiLU."""

    def forward(self, x: Tensor) -> Tensor:
        return norm(self, x, silu=True)


class SkippedSiLU(nn.SiLU):
    """Identity in place of a SiLU that the preceding norm includes."""

    def forward(self, x: Tensor) -> Tensor:
        return x


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    blocks.ResBlock: fused_denoiser.FusedResBlock,
    blocks.Upsample: fused_denoiser.FusedUpsample,
    blocks.AttentionBlock: fused_denoiser.FusedAttentionBlock,
    blocks.SpatialTransformer: fused_denoiser.FusedSpatialTransformer,
    transformer.BasicTransformerBlock: fused_denoiser.FusedTransformerBlock,
    transformer.GEGLU: fused_denoiser.FusedGEGLU,
    transformer.CrossAttention: fused_denoiser.FusedCrossAttention,
    dit.Attention: fused_transformer.FusedAttention,
    convnet.ResidualBlock: fused_autoencoder.FusedResidualBlock,
    convnet.SoftmaxAttention: fused_autoencoder.FusedSoftmaxAttention,
    convnet.Upsample: fused_autoencoder.FusedUpsample,
    convnet.Encoder: fused_autoencoder.FusedEncoder,
    convnet.Decoder: fused_autoencoder.FusedDecoder,
    convnet.GroupNorm: fused_autoencoder.FusedGroupNorm,
    nn.GroupNorm: FusedNorm,
    GroupNorm32: FusedNorm32,
    nn.LayerNorm: FusedLayerNorm,
    nn.Conv2d: FilteredConv2d,
}
"""Plain class -> fused class; exact types, so that a subclass with different behaviour is not replaced."""

WITH_SILU: dict[type[nn.Module], type[nn.Module]] = {nn.GroupNorm: FusedNormSiLU, GroupNorm32: FusedNorm32SiLU}
"""Replacements of norms directly followed by a SiLU."""

PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    **{fused: plain_class for plain_class, fused in FUSED.items()},
    **{fused: plain_class for plain_class, fused in WITH_SILU.items()},
    SkippedSiLU: nn.SiLU,
}


def for_training(module: M) -> M:
    """The same module, its blocks fused and its convolution weights channels-last; idempotent.

    Worth calling for any network that trains on the CPU, with or without autocast; harmless elsewhere. Inputs should be
    channels-last too.
    """
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a keyword missing in its stub
    return fuse(module)


def fuse(module: M) -> M:
    """The same module, its blocks fused, its weights in their present layout."""
    parts = list(module.modules())
    inside_blocks = {id(inner) for part in parts if isinstance(part, blocks.ResBlock) for inner in part.modules()}
    for part in parts:
        if type(part) is nn.Sequential and id(part) not in inside_blocks:
            _fuse_pairs(part)
    for part in parts:
        fused = FUSED.get(type(part))
        if fused is not None:
            part.__class__ = fused
    return module


def _fuse_pairs(sequence: nn.Sequential) -> None:
    """A norm directly before a SiLU computes both; the SiLU's index stays."""
    members = list(sequence)
    for first, second in itertools.pairwise(members):
        if type(first) in WITH_SILU and type(second) is nn.SiLU:
            first.__class__, second.__class__ = WITH_SILU[type(first)], SkippedSiLU


def plain(module: M) -> M:
    """Undoes `for_training`; the memory format of the weights stays."""
    for part in module.modules():
        original = PLAIN.get(type(part))
        if original is not None:
            part.__class__ = original
    return module
