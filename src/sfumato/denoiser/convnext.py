"""A convolutional denoiser: ConvNeXt blocks on a U, with cross-attention to tokens at the coarsest level.

The block of fully convolutional diffusion models (2026, arXiv 2603.09408): a depthwise 7 × 7 convolution, a norm over
channels, scale and shift from the embedding, a pointwise layer three times as wide, global response normalisation (Woo
et al. 2023, arXiv 2301.00808), a pointwise layer back, and a gate that is zero at the beginning (as adaLN-zero of
Peebles and Xie 2023).
"""

from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.conditioning.condition import Condition, ConditionSpec
from sfumato.denoiser.blocks import BlockInputs, SpatialTransformer
from sfumato.denoiser.network import Denoiser
from sfumato.nn.init import zero_
from sfumato.schema import Schema

EPS = 1e-6


class ConvNeXtConfig(Schema):
    """Width and depth of the convolutional denoiser; the depths and the expansion are the published ones.

    Example:
        >>> config = ConvNeXtConfig(kind="convnext", channels=64, channel_multipliers=(1, 2), blocks=(1, 2))
        >>> config.factor
        2
    """

    kind: Literal["convnext"] = "convnext"
    channels: int = Field(default=128, gt=0, le=65536, multiple_of=4, description="channels of the first level")
    channel_multipliers: tuple[int, ...] = Field(
        default=(1, 2, 4), min_length=1, max_length=10, description="one level for each"
    )
    blocks: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        default=(2, 5, 8),
        min_length=1,
        max_length=10,
        description="blocks of each level, going down and again going up; at the coarsest level in total",
    )
    kernel: int = Field(default=7, ge=1, le=31, description="side of the depthwise convolutions, odd")
    expansion: int = Field(default=3, ge=1, le=16, description="width inside a block, in channels of its level")
    attention_every: int = Field(
        default=2,
        ge=1,
        le=64,
        description="with tokens, this many blocks of the coarsest level before each spatial transformer",
    )
    head_channels: int = Field(
        default=32, gt=0, le=65536, description="channels of an attention head, a divisor of the coarsest level's"
    )
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    flow_map: bool = Field(
        default=False,
        description="the network of a student: it is also given the end of the step and the guidance scale",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(1 <= m <= 1024 for m in self.channel_multipliers):
            raise ValueError(f"channel_multipliers {self.channel_multipliers} must be between 1 and 1024")
        if len(self.blocks) != len(self.channel_multipliers):
            raise ValueError(
                f"blocks {self.blocks} must have one number for each of the {len(self.channel_multipliers)} levels"
            )
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} must be odd, so that a block keeps the size")
        if self.widths[-1] % self.head_channels:
            raise ValueError(
                f"head_channels {self.head_channels} does not divide the {self.widths[-1]} channels of the coarsest "
                "level"
            )
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * multiplier for multiplier in self.channel_multipliers)

    @property
    def factor(self) -> int:
        """H and W of the latent must be multiples of this."""
        return int(2 ** (len(self.channel_multipliers) - 1))


class GlobalResponseNorm(nn.Module):
    """x + γ x n + β, n the L2 norm of a channel over its positions, divided by the mean of all channels' norms.

    The identity at the beginning: γ and β are zero (Woo et al. 2023, section 3.2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), computed in the type of x but for the norms, which are float32."""
        norms = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True, dtype=torch.float32)
        relative = norms / (norms.mean(1, keepdim=True) + EPS)
        scale = 1 + self.weight[:, None, None] * relative
        return x * scale.to(x.dtype) + self.bias[:, None, None].to(x.dtype)


class ConvNeXtBlock(nn.Module):
    """The block described above, added to its input."""

    def __init__(self, channels: int, embedding_dim: int, kernel: int, expansion: int, dropout: float) -> None:
        super().__init__()
        wide = expansion * channels
        self.channels = channels
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.modulation = nn.Sequential(nn.SiLU(), zero_(nn.Linear(embedding_dim, 3 * channels)))
        self.widen = nn.Conv2d(channels, wide, 1)
        self.response = GlobalResponseNorm(wide)
        self.dropout = nn.Dropout(dropout)
        self.narrow = nn.Conv2d(wide, channels, 1)

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """x (B, C, H, W) -> the same shape."""
        scale, shift, gate = self.modulation(inputs.embedding)[:, :, None, None].to(x.dtype).chunk(3, dim=1)
        h = channel_norm(self.depthwise(x), self.channels) * (1 + scale) + shift
        h = self.narrow(self.dropout(self.response(F.gelu(self.widen(h)))))
        return x + gate * h


class Down(nn.Module):
    """Halves H and W: a convolution to a quarter of the channels, whose 2 × 2 neighbours become channels."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels // 4, 3, padding=1)

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        return F.pixel_unshuffle(self.conv(x), 2)


class Up(nn.Module):
    """Doubles H and W: a convolution to four times the channels, which become 2 × 2 neighbours."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * out_channels, 3, padding=1)

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


class ConvNeXt(Denoiser):
    """Predicts from (x_t, timestep, condition) a tensor of x_t's shape.

    Args:
        config: the topology.
        latent_channels: channels of x_t and of the prediction.
        spec: the fields of Condition it requires.

    Example:
        >>> config = ConvNeXtConfig(channels=32, channel_multipliers=(1, 2), blocks=(1, 2))
        >>> network = ConvNeXt(config, latent_channels=4, spec=ConditionSpec(token_dim=16))
        >>> condition = Condition(tokens=torch.zeros(2, 5, 16))
        >>> network(torch.zeros(2, 4, 8, 8), torch.tensor([10, 500]), condition).shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(self, config: ConvNeXtConfig, latent_channels: int, spec: ConditionSpec) -> None:
        super().__init__(config.channels, config.factor, config.flow_map, latent_channels, spec)
        self.config = config
        widths, last = config.widths, len(config.widths) - 1
        pairs = list(pairwise(widths))
        self.stem = nn.Conv2d(latent_channels + spec.spatial_channels, widths[0], 3, padding=1)
        self.descent = nn.ModuleList(self._level(level) for level in range(last))
        self.down = nn.ModuleList(Down(fine, coarse) for fine, coarse in pairs)
        self.middle = self._middle()
        self.up = nn.ModuleList(Up(coarse, fine) for fine, coarse in pairs)
        self.join = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for width in widths[:last])
        self.ascent = nn.ModuleList(self._level(level) for level in range(last))
        self.modulation = nn.Sequential(nn.SiLU(), zero_(nn.Linear(4 * config.channels, 2 * widths[0])))
        self.out = zero_(nn.Conv2d(widths[0], latent_channels, 3, padding=1))

    def _block(self, level: int) -> ConvNeXtBlock:
        c = self.config
        return ConvNeXtBlock(c.widths[level], 4 * c.channels, c.kernel, c.expansion, c.dropout)

    def _level(self, level: int) -> nn.ModuleList:
        return nn.ModuleList(self._block(level) for _ in range(self.config.blocks[level]))

    def _middle(self) -> nn.ModuleList:
        """The blocks of the coarsest level; with tokens, a spatial transformer after every `attention_every`, and after
        the last."""
        c, last = self.config, len(self.config.widths) - 1
        width, layers = c.widths[last], list[nn.Module]()
        for number in range(1, c.blocks[last] + 1):
            layers.append(self._block(last))
            if self.spec.token_dim is not None and (number % c.attention_every == 0 or number == c.blocks[last]):
                heads, groups = width // c.head_channels, _groups(width)
                layers.append(SpatialTransformer(width, heads, 1, self.spec.token_dim, c.dropout, groups=groups))
        return nn.ModuleList(layers)

    def forward(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        self._check(x_t, condition)
        inputs = self._inputs(timestep, condition)
        h = self.stem(x_t if condition.spatial is None else torch.cat([x_t, condition.spatial], 1))
        skips = []
        for blocks, down in zip(self.descent, self.down, strict=True):
            h = self._all(blocks, h, inputs)
            skips.append(h)
            h = down(h, inputs)
        h = self._all(self.middle, h, inputs)
        for up, join, blocks in zip(*(reversed(part) for part in (self.up, self.join, self.ascent)), strict=True):
            h = self._all(blocks, join(torch.cat([up(h, inputs), skips.pop()], 1)), inputs)
        scale, shift = self.modulation(inputs.embedding)[:, :, None, None].to(h.dtype).chunk(2, dim=1)
        out: Tensor = self.out(channel_norm(h, self.config.widths[0]) * (1 + scale) + shift)
        return out

    def _all(self, blocks: nn.Module, h: Tensor, inputs: BlockInputs) -> Tensor:
        for block in blocks.children():
            h = self._run(block, h, inputs)
        return h

    def recomputed_blocks(self) -> Iterator[nn.Module]:
        levels = (*self.descent, self.middle, *self.ascent)
        return chain.from_iterable(level.children() for level in levels)

    def first_layer(self) -> nn.Conv2d:
        return self.stem


def channel_norm(x: Tensor, channels: int) -> Tensor:
    """Layer norm of (B, C, H, W) over its C channels, without weights, computed in float32."""
    normed = F.layer_norm(x.permute(0, 2, 3, 1).float(), (channels,), eps=EPS)
    return normed.permute(0, 3, 1, 2).to(x.dtype)


def _groups(channels: int) -> int:
    """Groups of a norm: 32 as in the U-Net, fewer where that does not divide the channels."""
    return next(groups for groups in range(min(32, channels), 0, -1) if channels % groups == 0)
