"""Faster network calls: `for_inference` packs weights, fuses blocks, chooses the number format and, on a GPU, records
calls."""

from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from sfumato.autoencoder import convnet
from sfumato.autoencoder.bottleneck import Encoding
from sfumato.autoencoder.model import Autoencoder
from sfumato.conditioning.condition import Condition
from sfumato.denoiser import blocks
from sfumato.denoiser.convnext import ConvNeXt
from sfumato.denoiser.dit import DiT
from sfumato.denoiser.unet import UNet
from sfumato.engine.attention import attend, attend_packed
from sfumato.engine.fused_autoencoder import FusedDecoder, FusedResidualBlock, FusedSoftmaxAttention
from sfumato.engine.fused_denoiser import FusedCrossAttention, as_image, as_tokens
from sfumato.engine.graphs import Recordings, recordable
from sfumato.engine.groupnorm import norm
from sfumato.engine.packing import PackedConv2d, PackedLinear, convolve, packable, project
from sfumato.engine.precision import dtype_of
from sfumato.engine.training import for_training, fuse
from sfumato.engine.upsample import PackedUpsample, rewritable
from sfumato.nn.transformer import join_heads, split_heads

M = TypeVar("M", bound=nn.Module)

KEPT = ("time_embed", "flow_map", "label_emb", "quantize")
"""Submodules that stay plain and float32: they are small, and their precision matters."""

EXACT = ("quant_conv", "post_quant_conv")
"""Always packed as float32: the layers at the latent."""


def for_inference(module: M, dtype: torch.dtype | None = None) -> M:
    """Optimises the module for calls without gradients, in place; returns it.

    Packed weights replace the module's parameters (so that they are not in memory twice), and it can neither train nor
    be saved afterwards. Norms and the time embedding keep float32; inputs and outputs keep their types.
    The module is a denoiser, an autoencoder, or contains them.

    On a GPU, U-Nets also record their calls (`sfumato.engine.graphs`), and norms have the weights' type; they still
    compute in float32.

    Args:
        module: on the CPU or a CUDA device; elsewhere only moved to channels-last and returned.
        dtype: of weights and activations; None chooses `dtype_of("auto")`. float32 gives the plain module's result to
            rounding, bfloat16 to about 1e-2.
    """
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    if device.type not in ("cpu", "cuda"):
        return cast(M, module.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    dtype = dtype_of("auto", device) if dtype is None else dtype
    module.eval().requires_grad_(False)
    if device.type == "cuda":
        for_training(module)
    else:
        fuse(module)  # the weights of a layer that is never called, as an encoder's, are neither copied nor read
    _pack_blocks(module, dtype, PACKED if device.type == "cpu" else PACKED_ON_GPU, rewrite=device.type == "cpu")
    _pack_layers(module, dtype)
    if device.type == "cuda":
        _cast_norms(module, dtype)
    return module


class PackedUNet(UNet):
    """Casts at input and output: float32 outside, the packed layers' type inside."""

    def forward(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        x = x_t.contiguous(memory_format=torch.channels_last)
        return super().forward(x, timestep, condition).to(x_t.dtype)


class PackedConvNeXt(ConvNeXt):
    """As PackedUNet, of the convolutional denoiser."""

    def forward(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        x = x_t.contiguous(memory_format=torch.channels_last)
        return super().forward(x, timestep, condition).to(x_t.dtype)


class PackedDiT(DiT):
    """As PackedUNet, of the diffusion transformer."""

    def forward(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        return super().forward(x_t, timestep, condition).to(x_t.dtype)


class RecordedUNet(PackedUNet):
    """Replays recorded calls where no gradient is required. Autocast around it has no effect."""

    recordings: Recordings | None = None

    def forward(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        inputs = (x_t, timestep, condition.vector, condition.tokens, condition.mask, condition.spatial)
        if not recordable(inputs):
            return self._computed(*inputs)
        if self.recordings is None:
            self.recordings = Recordings()
        return self.recordings(self._computed, inputs)

    def _computed(self, x_t: Tensor, timestep: Tensor, *condition: Tensor | None) -> Tensor:
        inputs = Condition(*condition)
        if inputs.vector is not None:
            inputs = replace(inputs, vector=inputs.vector.float())  # its projection keeps float32
        with torch.autocast(x_t.device.type, enabled=False):
            return super().forward(x_t, timestep, inputs)

    def __getstate__(self) -> dict[str, Any]:
        """Copies have no recordings, since those refer to this module's memory."""
        return {**self.__dict__, "recordings": None}


class PackedAutoencoder(Autoencoder):
    """Casts at input and output and around the bottleneck: float32 outside, the packed layers' type inside."""

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Encoding:
        return super().encode(image.contiguous(memory_format=torch.channels_last), noise)

    def decode(self, z: Tensor, quantize: bool = True) -> Tensor:
        return super().decode(z.contiguous(memory_format=torch.channels_last), quantize).to(z.dtype)


class PackedSelfAttention(FusedCrossAttention):
    """Queries, keys and values by one projection."""

    to_qkv: PackedLinear

    def attended(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        return attend_packed(self.to_qkv(x), self.heads, mask=mask)


class PackedCrossAttention(FusedCrossAttention):
    """Keys and values by one projection."""

    to_kv: PackedLinear

    def attended(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        k, v = self.to_kv(x if context is None else context).chunk(2, dim=2)
        q, k, v = (split_heads(part, self.heads) for part in (self.to_q(x), k, v))
        return join_heads(attend(q, k, v, mask))


class PackedResidualBlock(FusedResidualBlock):
    """Uses less memory: its norms and, where the width changes, its sum overwrite their inputs.

    For the autoencoder's levels, where a block is the only reader of its input.
    """

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.nin_shortcut(x) if self.widens else x
        h = self.conv1(norm(self.norm1, x, silu=True, reuse=self.widens))
        h = norm(self.norm2, h, silu=True, reuse=True)
        return convolve(self.conv2, h, shortcut, reuse=self.widens)


class PackedDecoder(FusedDecoder):
    """Runs block by block: a level called as a whole would keep its input in memory to its end."""

    def forward(self, h: Tensor) -> Tensor:
        h = self.mid(self.conv_in(h))
        for level in reversed(list(self.up)):
            assert isinstance(level, convnet.Level)
            for i, block in enumerate(level.block):
                h = block(h)
                if len(level.attn) > 0:
                    h = level.attn[i](h)
            if level.resample == "up":
                h = level.upsample(h)
        return self.conv_out(norm(self.norm_out, h, silu=True, reuse=True))


class PackedSoftmaxAttention(FusedSoftmaxAttention):
    """Queries, keys and values by one projection."""

    qkv: PackedLinear

    def forward(self, x: Tensor) -> Tensor:
        attended = attend_packed(self.qkv(as_tokens(norm(self.norm, x))), heads=1)
        return as_image(project(self.proj_out, attended, as_tokens(x)), x)


PACKED: dict[type[nn.Module], type[nn.Module]] = {
    FusedResidualBlock: PackedResidualBlock,
    FusedDecoder: PackedDecoder,
    UNet: PackedUNet,
    ConvNeXt: PackedConvNeXt,
    DiT: PackedDiT,
    Autoencoder: PackedAutoencoder,
}
"""Classes that only override `forward`."""

PACKED_ON_GPU: dict[type[nn.Module], type[nn.Module]] = {**PACKED, UNet: RecordedUNet}


def _pack_blocks(
    module: nn.Module, dtype: torch.dtype, packed: dict[type[nn.Module], type[nn.Module]], rewrite: bool
) -> None:
    """Packs a block's maps of tokens, several projections of one input as one; with `rewrite` also upsampling."""
    for part in list(module.modules()):
        if isinstance(part, blocks.AttentionBlock):
            part.add_module("qkv", _linear(part.qkv, dtype=dtype))
            part.add_module("proj_out", _linear(part.proj_out, dtype=dtype))
        elif isinstance(part, blocks.SpatialTransformer):
            part.add_module("proj_in", _linear(part.proj_in, dtype=dtype))
            part.add_module("proj_out", _linear(part.proj_out, dtype=dtype))
            for block in part.transformer_blocks:
                _pack_attentions(block, dtype)
        elif isinstance(part, convnet.SoftmaxAttention):
            part.add_module("qkv", _linear(part.q, part.k, part.v, dtype=dtype))
            part.add_module("proj_out", _linear(part.proj_out, dtype=dtype))
            del part.q, part.k, part.v
            part.__class__ = PackedSoftmaxAttention
        elif type(part) in packed:
            part.__class__ = packed[type(part)]
        elif rewrite and isinstance(part, blocks.Upsample | convnet.Upsample):
            conv: nn.Module = part.conv
            if isinstance(conv, nn.Conv2d) and rewritable(conv):
                part.add_module("conv", PackedUpsample(conv, dtype))


def _linear(*layers: nn.Module, dtype: torch.dtype) -> nn.Module:
    return PackedLinear.of(*layers, dtype=dtype)


def _pack_attentions(block: nn.Module, dtype: torch.dtype) -> None:
    """attn1 attends to its own input, attn2 to the context."""
    for name in ("attn1", "attn2"):
        attention = getattr(block, name)
        if not isinstance(attention, FusedCrossAttention):
            continue
        if name == "attn1":
            attention.add_module("to_qkv", _linear(attention.to_q, attention.to_k, attention.to_v, dtype=dtype))
            attention.__class__ = PackedSelfAttention
            del attention.to_q
        else:
            attention.add_module("to_kv", _linear(attention.to_k, attention.to_v, dtype=dtype))
            attention.__class__ = PackedCrossAttention
        del attention.to_k, attention.to_v


def _pack_layers(module: nn.Module, dtype: torch.dtype) -> None:
    """Replaces the remaining convolutions and linear layers."""
    for name, child in module.named_children():
        if name in KEPT:
            continue
        if isinstance(child, nn.Conv2d) and packable(child):
            packed = PackedConv2d.of(child, torch.float32 if name in EXACT else dtype)
            if isinstance(child, blocks.Stem):
                packed.__class__ = PackedStem
            setattr(module, name, packed)
        elif type(child) is nn.Linear:
            setattr(module, name, PackedLinear.of(child, dtype=dtype))
        else:
            _pack_layers(child, dtype)


def _cast_norms(module: nn.Module, dtype: torch.dtype) -> None:
    """A GPU's kernels require input and weights of one type, and always compute in float32."""
    for part in module.modules():
        if isinstance(part, nn.GroupNorm | nn.LayerNorm):
            part.to(dtype)


class PackedStem(PackedConv2d):
    """The first convolution, with the blocks' signature."""

    def forward(self, x: Tensor, inputs: object = None, reuse: bool = False) -> Tensor:
        return super().forward(x)
