"""The names of diffusers' tensors for each of sfumato's. The values are the same; some layouts differ."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sfumato.denoiser.unet import UNetConfig

Layout = Literal["same", "linear", "qkv", "shared"]


@dataclass(frozen=True)
class Entry:
    """A tensor of sfumato: diffusers' key (three for qkv), and the difference of layout.

    "linear": ours is a 1×1 convolution, theirs a linear layer. "qkv": ours is one tensor of all heads' q, k and v.
    "shared": each of their blocks has a copy of it.
    """

    theirs: tuple[str, ...]
    layout: Layout = "same"
    heads: int = 1
    head_first: bool = True

    def misfit(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> str | None:
        """The first key of theirs whose size is not that of one of ours of this shape; None where all fit."""
        if self.layout == "shared":
            return next((key for key, part in parts.items() if part.shape != shape), None)
        elements = sum(part.numel() for part in parts.values())
        same_axes = len(parts) > 1 or self.layout != "same" or next(iter(parts.values())).shape == shape
        return None if elements == torch.Size(shape).numel() and same_axes else self.theirs[0]

    def unlike_the_first(self, parts: Mapping[str, Tensor]) -> str | None:
        """The first key of a shared tensor with other values than the first copy; None where all are equal."""
        if self.layout != "shared":
            return None
        first = parts[self.theirs[0]]
        return next((key for key in self.theirs[1:] if not torch.equal(parts[key], first)), None)

    def to_ours(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """sfumato's tensor of a shape from theirs; raises ValueError if the sizes differ."""
        parts = [tensors[key] for key in self.theirs]
        if self.layout != "qkv":
            return parts[0] if parts[0].shape == shape else parts[0].reshape(shape)
        q, k, v = (part.reshape(self.heads, part.shape[0] // self.heads, -1) for part in parts)
        return torch.stack([q, k, v], 1 if self.head_first else 0).reshape(shape)

    def to_theirs(self, tensor: Tensor) -> dict[str, Tensor]:
        """Diffusers' tensors from sfumato's."""
        if self.layout == "linear" and tensor.dim() > 1:
            return {self.theirs[0]: tensor.flatten(1)}
        if self.layout == "shared":
            return {key: tensor.clone() for key in self.theirs}
        if self.layout != "qkv":
            return {self.theirs[0]: tensor}
        channels = tensor.shape[0] // 3
        inner = tensor.shape[1:2]  # (C,) of a weight, () of a bias
        split = (self.heads, 3, channels // self.heads) if self.head_first else (3, self.heads, channels // self.heads)
        parts = tensor.reshape(*split, *inner).unbind(1 if self.head_first else 0)
        return {key: part.reshape(channels, *inner).contiguous() for key, part in zip(self.theirs, parts, strict=True)}


# -- first stage ------------------------------------------------------------------------------------------------------

_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_LEVEL = re.compile(r"(encoder|decoder)\.(down|up)\.(\d+)\.(block|attn|downsample|upsample)\.(.+)$")
_MIDDLE = re.compile(r"(encoder|decoder)\.mid\.(block_1|block_2|attn_1)\.(.+)$")


def autoencoder_entry(key: str, levels: int) -> Entry:
    """The entry of one of the autoencoder's tensors in AutoencoderKL and VQModel."""
    if found := _LEVEL.match(key):
        side, direction, number, kind, rest = found.groups()
        index = int(number) if direction == "down" else levels - 1 - int(number)
        level = f"{side}.{direction}_blocks.{index}."
        if kind in ("downsample", "upsample"):
            return Entry((f"{level}{kind}rs.0.{rest}",))
        position, rest = rest.split(".", 1)
        if kind == "block":
            return Entry((f"{level}resnets.{position}.{rest.replace('nin_shortcut', 'conv_shortcut')}",))
        return _attention(f"{level}attentions.{position}.", rest)
    if found := _MIDDLE.match(key):
        side, kind, rest = found.groups()
        if kind == "attn_1":
            return _attention(f"{side}.mid_block.attentions.0.", rest)
        return Entry((f"{side}.mid_block.resnets.{int(kind[-1]) - 1}.{rest.replace('nin_shortcut', 'conv_shortcut')}",))
    return Entry((key.replace(".norm_out.", ".conv_norm_out."),))


def _attention(prefix: str, rest: str) -> Entry:
    name, end = rest.rsplit(".", 1)
    return Entry((f"{prefix}{_ATTENTION[name]}.{end}",), "same" if name == "norm" else "linear")


OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of the first stage's attention in older releases of diffusers."""


# -- U-Net ------------------------------------------------------------------------------------------------------------

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def unet_entry(key: str, config: UNetConfig) -> Entry:
    """The entry of one of the U-Net's tensors in UNet2DModel and UNet2DConditionModel."""
    module, end = key.rsplit(".", 1)
    if module in _TOP:
        return Entry((f"{_TOP[module]}.{end}",))
    place, rest = _place(key, config)
    return _inside(place, rest, config, key)


def _place(key: str, config: UNetConfig) -> tuple[str, str]:
    """(their module's prefix, what follows in ours) of a key in one of the three stacks of blocks."""
    levels, blocks = len(config.channel_multipliers), config.blocks_per_level
    stack, *path = key.split(".")
    if stack == "middle_block":
        names = ("resnets.0", "attentions.0", "resnets.1")
        return f"mid_block.{names[int(path[0])]}.", ".".join(path[1:])
    if stack not in ("input_blocks", "output_blocks"):
        raise KeyError(key)
    number, member, rest = int(path[0]), int(path[1]), ".".join(path[2:])
    if stack == "input_blocks":
        level, position = divmod(number - 1, blocks + 1)
        if position == blocks:
            return f"down_blocks.{level}.downsamplers.0.", rest.removeprefix("op.") if rest.startswith("op.") else rest
        return f"down_blocks.{level}.{'attentions' if member else 'resnets'}.{position}.", rest
    step, position = divmod(number, blocks + 1)
    level = levels - 1 - step
    attends = 2**level in config.attention_factors
    if member == 0:
        return f"up_blocks.{step}.resnets.{position}.", rest
    if member == 1 and attends:
        return f"up_blocks.{step}.attentions.{position}.", rest
    return f"up_blocks.{step}.upsamplers.0.", rest


def _inside(place: str, rest: str, config: UNetConfig, key: str) -> Entry:
    module, _, end = rest.rpartition(".")
    if module in _RESNET:
        return Entry((f"{place}{_RESNET[module]}.{end}",))
    if ".attentions." not in place or rest.startswith("transformer_blocks.") or "proj_in" in rest:
        return Entry((f"{place}conv.{rest}",)) if rest in ("weight", "bias") else Entry((place + rest,))
    if module == "norm":
        return Entry((f"{place}norm.{end}", f"{place}group_norm.{end}"))
    if module == "qkv":
        theirs = tuple(f"{place}{name}.{end}" for name in ("to_q", "to_k", "to_v"))
        return Entry(theirs, "qkv", _heads(key, config), config.attention_order == "head_first")
    return Entry((f"{place}proj_out.{end}", f"{place}to_out.0.{end}"))


def _heads(key: str, config: UNetConfig) -> int:
    """Heads of the attention block a key belongs to."""
    if config.heads is not None:
        return config.heads
    levels, blocks = len(config.channel_multipliers), config.blocks_per_level
    stack, number = key.split(".")[:2]
    level = levels - 1
    if stack == "input_blocks":
        level = (int(number) - 1) // (blocks + 1)
    elif stack == "output_blocks":
        level = levels - 1 - int(number) // (blocks + 1)
    assert config.head_channels is not None
    return config.channels * config.channel_multipliers[level] // config.head_channels


def unet_entries(keys: Mapping[str, object], config: UNetConfig, tokens: bool) -> dict[str, Entry]:
    """our key -> entry. With tokens attention is a spatial transformer, else an attention block, which has other names
    in diffusers."""
    entries = {}
    for key in keys:
        entry = unet_entry(key, config)
        if entry.layout == "same" and len(entry.theirs) == 2:
            spatial, block = entry.theirs
            linear: Layout = "linear" if block.endswith("to_out.0.weight") else "same"
            entry = Entry((spatial,)) if tokens else Entry((block,), linear)
        entries[key] = entry
    return entries


def autoencoder_entries(keys: Mapping[str, object], levels: int) -> dict[str, Entry]:
    """our key -> entry."""
    return {key: autoencoder_entry(key, levels) for key in keys}
