"""The U-Net's blocks. All are called with (x, inputs), so that a level is a plain sequence of them.

Shapes: x (B, C, H, W); embedding (B, E); tokens (B, S, D). Module names are the original's checkpoint keys.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.attention import attend
from sfumato.nn.init import zero_
from sfumato.nn.norm import GroupNorm32
from sfumato.nn.transformer import BasicTransformerBlock

GROUPS = 32


@dataclass(frozen=True)
class BlockInputs:
    """The inputs of every block besides the image: the time embedding, and the tokens with their mask."""

    embedding: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None


class Block(nn.ModuleList):
    """A sequence whose members all receive the inputs: input_blocks.N and its siblings in the checkpoint."""

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        for layer in self:
            x = layer(x, inputs)
        return x


class Stem(nn.Conv2d):
    """The first convolution, with the blocks' signature."""

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class Downsample(nn.Module):
    """Halves H and W: a convolution of stride 2 (key op), or average pooling."""

    def __init__(self, channels: int, learned: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if learned else nn.AvgPool2d(2)

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        out: Tensor = self.op(x)
        return out


class Upsample(nn.Module):
    """Doubles H and W by nearest neighbour, then a convolution (key conv) if learned."""

    def __init__(self, channels: int, learned: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if learned else nn.Identity()

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return out


class ResBlock(nn.Module):
    """Two convolutions, each after group norm and SiLU, with the embedding added (or scaling and shifting) between.

    resample "up" or "down" changes H and W of the branch and of the skip alike, between activation and convolution.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embedding_dim: int,
        dropout: float = 0.0,
        scale_shift: bool = False,
        resample: Literal["up", "down"] | None = None,
        groups: int = GROUPS,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.resample = resample
        self.in_layers = nn.Sequential(
            GroupNorm32(groups, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(embedding_dim, 2 * out_channels if scale_shift else out_channels)
        )
        self.out_layers = nn.Sequential(
            GroupNorm32(groups, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def _resized(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return x

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        norm_in, activate, conv_in = self.in_layers
        norm_out, *rest = self.out_layers
        h = conv_in(self._resized(activate(norm_in(x))))
        shift = self.emb_layers(inputs.embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            h = norm_out(h) * (1 + scale) + shift
        else:
            h = norm_out(h + shift)
        for layer in rest:
            h = layer(h)
        out: Tensor = self.skip_connection(self._resized(x)) + h
        return out


class AttentionBlock(nn.Module):
    """Self-attention over the positions of a feature map (ADM's block), added to its input.

    `order` is the layout of the 3·C channels of qkv: head first (head, qkv, d), the original's default, or
    qkv first (qkv, head, d), its "new attention order".
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        order: Literal["head_first", "qkv_first"] = "head_first",
        groups: int = GROUPS,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.order = order
        self.norm = GroupNorm32(groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        B, C, H, W = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # a view when x is channels-last
        # The 1×1 convolutions are linear maps of tokens; applying them as such keeps the channels-last layout.
        qkv = F.linear(tokens, self.qkv.weight.squeeze(2), self.qkv.bias)  # (B, T, 3C)
        if self.order == "head_first":
            q, k, v = qkv.unflatten(2, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        else:
            q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = attend(q, k, v).transpose(1, 2).reshape(B, H * W, C)
        h = F.linear(attended, self.proj_out.weight.squeeze(2), self.proj_out.bias)
        return x + h.transpose(1, 2).unflatten(2, (H, W))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a feature map, attending to the condition's tokens (§3.3 of the paper).

    Its projections are 1×1 convolutions, or linear layers on tokens (Stable Diffusion 2).
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        depth: int,
        token_dim: int,
        dropout: float = 0.0,
        linear: bool = False,
        groups: int = GROUPS,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = GroupNorm32(groups, channels, eps=1e-6)
        self.proj_in: nn.Module = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, heads, channels // heads, token_dim, dropout) for _ in range(depth)
        )
        self.proj_out: nn.Module = zero_(nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        H, W = x.shape[2:]
        h = self.norm(x)
        if self.linear:
            tokens = self.proj_in(h.flatten(2).transpose(1, 2))
        else:
            tokens = self.proj_in(h).flatten(2).transpose(1, 2)  # (B, H·W, C), a view when x is channels-last
        for block in self.transformer_blocks:
            tokens = block(tokens, inputs.tokens, inputs.mask)
        if self.linear:
            h = self.proj_out(tokens).transpose(1, 2).unflatten(2, (H, W))
        else:
            h = self.proj_out(tokens.transpose(1, 2).unflatten(2, (H, W)))
        return x + h
