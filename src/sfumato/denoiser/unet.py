"""The U-Net of latent diffusion models: ADM's convolutional U-Net, cross-attending to the condition's tokens (§3.3)."""

from collections.abc import Iterator
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.conditioning.condition import Condition, ConditionSpec
from sfumato.denoiser.blocks import (
    AttentionBlock,
    Block,
    Downsample,
    ResBlock,
    SpatialTransformer,
    Stem,
    Upsample,
)
from sfumato.denoiser.network import Denoiser, VectorProjection
from sfumato.nn.init import zero_
from sfumato.nn.norm import GroupNorm32
from sfumato.schema import Schema

MAX_BLOCKS = 1024
"""Bound on the blocks of all levels and their transformers, far above any real model."""


class UNetConfig(Schema):
    """Width, depth and attention of the U-Net; the defaults are a small model's.

    Example:
        >>> config = sfumato.UNetConfig(channels=64, channel_multipliers=(1, 2), heads=4)
        >>> config.factor, config.head_channels
        (2, None)
    """

    kind: Literal["unet"] = "unet"
    channels: int = Field(
        default=128, gt=0, le=65536, description="channels of the first level, a multiple of norm_groups"
    )
    channel_multipliers: tuple[int, ...] = Field(
        default=(1, 2, 4), min_length=1, max_length=10, description="one level for each"
    )
    blocks_per_level: int = Field(default=2, gt=0, le=64)
    attention_factors: tuple[int, ...] = Field(
        default=(1, 2, 4),
        description="downsampling factors whose blocks have attention; the middle block always has it",
    )
    heads: int | None = Field(default=None, gt=0, le=65536, description="number of heads; give this or head_channels")
    head_channels: int | None = Field(default=32, gt=0, le=65536, description="channels of a head; give this or heads")
    transformer_depth: int = Field(
        default=1, gt=0, le=64, description="blocks of each spatial transformer (with tokens only)"
    )
    resample: Literal["conv", "pool", "residual"] = "conv"
    scale_shift_norm: bool = False
    attention_order: Literal["head_first", "qkv_first"] = "head_first"
    linear_projections: bool = False
    vector_projection: VectorProjection = Field(
        default="mlp", description="none: the condition's vector already has 4 x channels entries"
    )
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    norm_groups: int = Field(
        default=32,
        gt=0,
        le=65536,
        description="groups of every norm; use fewer groups for few channels, so that each has several",
    )
    flow_map: bool = Field(
        default=False,
        description="the network of a student: it is also given the end of the step and the guidance scale",
    )

    @model_validator(mode="before")
    @classmethod
    def _heads_replace_head_channels(cls, values: Any) -> Any:
        """Setting heads alone is enough: it replaces the default of head_channels."""
        if isinstance(values, dict) and values.get("heads") is not None and "head_channels" not in values:
            return {**values, "head_channels": None}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.heads is None) == (self.head_channels is None):
            raise ValueError(
                f"exactly one of heads and head_channels must be set, not {self.heads} and {self.head_channels}"
            )
        if not all(1 <= m <= 1024 for m in self.channel_multipliers):
            raise ValueError(f"channel_multipliers {self.channel_multipliers} must be between 1 and 1024")
        blocks = len(self.channel_multipliers) * self.blocks_per_level * self.transformer_depth
        if blocks > MAX_BLOCKS:
            raise ValueError(f"{blocks} blocks (levels x blocks_per_level x transformer_depth): at most {MAX_BLOCKS}")
        if self.channels % self.norm_groups:
            raise ValueError(
                f"channels must be a multiple of norm_groups = {self.norm_groups} (the groups of the norms), "
                f"not {self.channels}"
            )
        divisor, name = (self.heads, "heads") if self.heads is not None else (self.head_channels, "head_channels")
        assert divisor is not None
        for width in self.attended_widths():
            if width % divisor:
                raise ValueError(f"{name} {divisor} does not divide the {width} channels of an attended level")
        return self

    def attended_widths(self) -> set[int]:
        """The channel counts of blocks with attention, the middle block's included."""
        widths = [self.channels * m for m in self.channel_multipliers]
        return {w for level, w in enumerate(widths) if 2**level in self.attention_factors} | {widths[-1]}

    @property
    def factor(self) -> int:
        """H and W of the latent must be multiples of this."""
        return int(2 ** (len(self.channel_multipliers) - 1))


class UNet(Denoiser):
    """Predicts from (x_t, timestep, condition) a tensor of x_t's shape.

    Args:
        config: the topology.
        latent_channels: channels of x_t and of the prediction.
        spec: the fields of Condition it requires. Attention is a spatial transformer with tokens, else AttentionBlock.

    Submodule names are the original's checkpoint keys.

    Raises:
        ValueError: the spec's vector does not have 4 x channels entries and vector_projection is "none".

    Example:
        >>> config = sfumato.UNetConfig(channels=32, channel_multipliers=(1, 2), blocks_per_level=1)
        >>> unet = sfumato.UNet(config, latent_channels=4, spec=sfumato.ConditionSpec(token_dim=16))
        >>> condition = sfumato.Condition(tokens=torch.zeros(2, 5, 16))
        >>> unet(torch.zeros(2, 4, 8, 8), torch.tensor([10, 500]), condition).shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(self, config: UNetConfig, latent_channels: int, spec: ConditionSpec) -> None:
        projection = config.vector_projection
        super().__init__(config.channels, config.factor, config.flow_map, latent_channels, spec, projection)
        self.config = config
        self.input_blocks, skips = self._encoder(latent_channels + spec.spatial_channels)
        middle = skips[-1]
        self.middle_block = Block([self._res(middle, middle), self._attention(middle), self._res(middle, middle)])
        self.output_blocks = self._decoder(skips)
        self.out = nn.Sequential(
            GroupNorm32(config.norm_groups, config.channels * config.channel_multipliers[0]),
            nn.SiLU(),
            zero_(nn.Conv2d(config.channels * config.channel_multipliers[0], latent_channels, 3, padding=1)),
        )

    def _res(self, channels: int, out: int, resample: Literal["up", "down"] | None = None) -> nn.Module:
        c = self.config
        return ResBlock(channels, out, 4 * c.channels, c.dropout, c.scale_shift_norm, resample, c.norm_groups)

    def _attention(self, channels: int) -> nn.Module:
        c = self.config
        heads = c.heads if c.heads is not None else channels // (c.head_channels or channels)
        if self.spec.token_dim is None:
            return AttentionBlock(channels, heads, c.attention_order, c.norm_groups)
        depth, linear = c.transformer_depth, c.linear_projections
        return SpatialTransformer(channels, heads, depth, self.spec.token_dim, linear=linear, groups=c.norm_groups)

    def _down(self, channels: int) -> nn.Module:
        if self.config.resample == "residual":
            return self._res(channels, channels, "down")
        return Downsample(channels, learned=self.config.resample == "conv")

    def _up(self, channels: int) -> nn.Module:
        if self.config.resample == "residual":
            return self._res(channels, channels, "up")
        return Upsample(channels, learned=self.config.resample == "conv")

    def _encoder(self, in_channels: int) -> tuple[nn.ModuleList, list[int]]:
        """The blocks down to the lowest level, and the channels of each one's skip connection."""
        c = self.config
        channels = c.channels
        blocks = [Block([Stem(in_channels, channels, 3, padding=1)])]
        skips = [channels]
        last = len(c.channel_multipliers) - 1
        for level, multiplier in enumerate(c.channel_multipliers):
            for _ in range(c.blocks_per_level):
                layers = [self._res(channels, multiplier * c.channels)]
                channels = multiplier * c.channels
                if 2**level in c.attention_factors:
                    layers.append(self._attention(channels))
                blocks.append(Block(layers))
                skips.append(channels)
            if level < last:
                blocks.append(Block([self._down(channels)]))
                skips.append(channels)
        return nn.ModuleList(blocks), skips

    def _decoder(self, skips: list[int]) -> nn.ModuleList:
        """One block for each of the encoder's, in reverse; its input is concatenated with that block's output."""
        c = self.config
        remaining = list(skips)
        channels = remaining[-1]
        blocks = []
        for level, multiplier in reversed(list(enumerate(c.channel_multipliers))):
            for i in range(c.blocks_per_level + 1):
                layers = [self._res(channels + remaining.pop(), multiplier * c.channels)]
                channels = multiplier * c.channels
                if 2**level in c.attention_factors:
                    layers.append(self._attention(channels))
                if level > 0 and i == c.blocks_per_level:
                    layers.append(self._up(channels))
                blocks.append(Block(layers))
        return nn.ModuleList(blocks)

    def forward(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        self._check(x_t, condition)
        inputs = self._inputs(timestep, condition)
        h = x_t if condition.spatial is None else torch.cat([x_t, condition.spatial], 1)
        skips = []
        for block in self.input_blocks:
            h = self._run(block, h, inputs)
            skips.append(h)
        h = self._run(self.middle_block, h, inputs)
        for block in self.output_blocks:
            h = self._run(block, torch.cat([h, skips.pop()], 1), inputs)
        out: Tensor = self.out(h)
        return out

    def recomputed_blocks(self) -> Iterator[nn.Module]:
        return iter((*self.input_blocks, self.middle_block, *self.output_blocks))

    def first_layer(self) -> nn.Conv2d:
        first = self.input_blocks[0]
        assert isinstance(first, Block)
        stem = first[0]
        assert isinstance(stem, Stem)
        return stem
