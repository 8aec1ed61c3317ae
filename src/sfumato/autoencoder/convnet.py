"""The convolutional encoder and decoder of the first stage (Rombach et al. 2022, App. G; after Esser et al. 2021).

Topology, numerics and parameter names are those of the published autoencoders.
Axes: B batch, C channels, H×W pixels, h×w latent.
"""

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.attention import attend

AttentionKind = Literal["softmax", "linear", "none"]
Padding = Literal["zeros", "reflect"]
"""The padding of a 3×3 convolution at the border: zeros, or the pixels inside it, mirrored at the outermost one."""


class GroupNorm(nn.GroupNorm):
    """Group normalisation with float32 statistics whatever the input's type; 32 groups, or gcd(32, channels).

    The cast is also faster: the reduced-precision channels-last kernel of the CPU takes more than twice as long.
    """

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__(math.gcd(groups, channels), channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W) of the same type."""
        if x.element_size() >= 4:
            return super().forward(x)
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


def conv3x3(in_channels: int, out_channels: int, padding: Padding = "zeros") -> nn.Conv2d:
    """A 3×3 convolution that keeps height and width."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, padding_mode=padding)


class ResidualBlock(nn.Module):
    """x + conv(dropout(silu(norm(conv(silu(norm(x))))))); a 1×1 convolution carries x where the width changes."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dropout: float = 0.0,
        groups: int = 32,
        padding: Padding = "zeros",
    ) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels, groups)
        self.conv1 = conv3x3(in_channels, out_channels, padding)
        self.norm2 = GroupNorm(out_channels, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels, padding)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.widens = in_channels != out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return (self.nin_shortcut(x) if self.widens else x) + h


class SoftmaxAttention(nn.Module):
    """One head over all channels and positions, with norm and residual."""

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        B, C, H, W = x.shape
        h = self.norm(x)
        # (B, C, H, W) -> (B, 1 head, H·W, C): a view when the memory is channels-last.
        q, k, v = (conv(h).permute(0, 2, 3, 1).reshape(B, 1, H * W, C) for conv in (self.q, self.k, self.v))
        h = attend(q, k, v).reshape(B, H, W, C).permute(0, 3, 1, 2)
        return x + self.proj_out(h)


class LinearAttention(nn.Module):
    """Attention whose cost is linear in the positions (Shen et al. 2021): softmax over the keys' positions only.

    One head; as in the original it has neither norm nor residual.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.to_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        B, C, H, W = x.shape
        q, k, v = self.to_qkv(x).reshape(B, 3, C, H * W).unbind(1)
        context = k.softmax(dim=-1) @ v.transpose(1, 2)  # (B, C_k, C_v)
        return self.to_out((context.transpose(1, 2) @ q).reshape(B, C, H, W))


def build_attention(kind: AttentionKind, channels: int, groups: int = 32) -> nn.Module:
    """The attention layer of one kind; "none" passes its input through."""
    if kind == "softmax":
        return SoftmaxAttention(channels, groups)
    if kind == "linear":
        return LinearAttention(channels)
    return nn.Identity()


class Downsample(nn.Module):
    """Halves H and W: a 3×3 convolution of stride 2, padded on the right and the bottom only."""

    def __init__(self, channels: int, padding: Padding = "zeros") -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)
        self.pad_mode = "constant" if padding == "zeros" else padding

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1), self.pad_mode))


class Upsample(nn.Module):
    """Doubles H and W: nearest neighbour, then a 3×3 convolution."""

    def __init__(self, channels: int, padding: Padding = "zeros") -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels, padding)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention where the level has it, then resampling."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int,
        attention: AttentionKind | None,
        dropout: float,
        resample: Literal["down", "up"] | None,
        groups: int,
        padding: Padding = "zeros",
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(in_channels if i == 0 else out_channels, out_channels, dropout, groups, padding)
            for i in range(blocks)
        )
        self.attn = nn.ModuleList()
        if attention is not None:
            self.attn.extend(build_attention(attention, out_channels, groups) for _ in range(blocks))
        if resample == "down":
            self.downsample = Downsample(out_channels, padding)
        elif resample == "up":
            self.upsample = Upsample(out_channels, padding)
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn) > 0:
                x = self.attn[i](x)
        if self.resample == "down":
            return self.downsample(x)
        if self.resample == "up":
            return self.upsample(x)
        return x


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(
        self, channels: int, attention: AttentionKind, dropout: float, groups: int, padding: Padding = "zeros"
    ) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, dropout, groups, padding)
        self.attn_1 = build_attention(attention, channels, groups)
        self.block_2 = ResidualBlock(channels, channels, dropout, groups, padding)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Image -> features at 1/f of its size, f = 2 ** (len(widths) - 1).

    Args:
        in_channels: channels of the image.
        out_channels: channels of the features (twice the latent's for a Gaussian posterior).
        stem: width of the first convolution.
        widths: channels of each level, the full resolution first.
        blocks: residual blocks a level.
        attention_levels: levels whose blocks are followed by attention.
        attention: the kind of every attention layer, the middle's included.
        dropout: rate inside the residual blocks.
        groups: of every norm; where they do not divide the channels, their greatest common divisor.
        padding: of every 3×3 convolution; "reflect" needs two positions along each side at the lowest resolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stem: int,
        widths: Sequence[int],
        blocks: int,
        attention_levels: Sequence[int] = (),
        attention: AttentionKind = "softmax",
        dropout: float = 0.0,
        groups: int = 32,
        padding: Padding = "zeros",
    ) -> None:
        super().__init__()
        last = len(widths) - 1
        self.conv_in = conv3x3(in_channels, stem, padding)
        self.down = nn.ModuleList(
            Level(
                stem if level == 0 else widths[level - 1],
                width,
                blocks,
                attention if level in attention_levels else None,
                dropout,
                "down" if level < last else None,
                groups,
                padding,
            )
            for level, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1], attention, dropout, groups, padding)
        self.norm_out = GroupNorm(widths[-1], groups)
        self.conv_out = conv3x3(widths[-1], out_channels, padding)

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H/f, W/f)."""
        h = self.conv_in(image)
        for level in self.down:
            h = level(h)
        h = self.mid(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Features at 1/f of the size -> image; one more block a level than the encoder. Arguments as the encoder's.

    The levels are stored by resolution, as the encoder's: `up[0]` is the full resolution and runs last.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        blocks: int,
        attention_levels: Sequence[int] = (),
        attention: AttentionKind = "softmax",
        dropout: float = 0.0,
        groups: int = 32,
        padding: Padding = "zeros",
    ) -> None:
        super().__init__()
        last = len(widths) - 1
        self.conv_in = conv3x3(in_channels, widths[-1], padding)
        self.mid = Middle(widths[-1], attention, dropout, groups, padding)
        self.up = nn.ModuleList(
            Level(
                widths[min(level + 1, last)],
                width,
                blocks + 1,
                attention if level in attention_levels else None,
                dropout,
                "up" if level > 0 else None,
                groups,
                padding,
            )
            for level, width in enumerate(widths)
        )
        self.norm_out = GroupNorm(widths[0], groups)
        self.conv_out = conv3x3(widths[0], out_channels, padding)

    def forward(self, h: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, f·h, f·w), unbounded."""
        h = self.mid(self.conv_in(h))
        for level in reversed(cast(Sequence[nn.Module], self.up)):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))
