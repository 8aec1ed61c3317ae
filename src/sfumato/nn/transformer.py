"""Transformer blocks on tokens (B, T, C): attention with an optional context, gated and plain feed-forward."""

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.attention import attend


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, H·D) -> (B, H, T, D), a view."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, T, D) -> (B, T, H·D)."""
    return x.transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    """Attention from x (B, T, dim) to a context (B, S, context_dim), or to x itself without a context.

    Keys to_q, to_k, to_v (no bias) and to_out.0 as in the original.
    """

    def __init__(
        self, dim: int, heads: int, head_dim: int, context_dim: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim or dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim or dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, dim), nn.Dropout(dropout))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """mask (B, S) bool, True where a context token may be attended."""
        source = x if context is None else context
        q = split_heads(self.to_q(x), self.heads)
        k = split_heads(self.to_k(source), self.heads)
        v = split_heads(self.to_v(source), self.heads)
        out: Tensor = self.to_out(join_heads(attend(q, k, v, mask)))
        return out


class GEGLU(nn.Module):
    """Linear to twice the width; one half gates the other through the exact (erf) GELU (Shazeer 2020)."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back; keys net.0.proj and net.2."""

    def __init__(self, dim: int, dropout: float = 0.0, expansion: int = 4) -> None:
        super().__init__()
        inner = dim * expansion
        self.net = nn.Sequential(GEGLU(dim, inner), nn.Dropout(dropout), nn.Linear(inner, dim))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class BasicTransformerBlock(nn.Module):
    """Pre-norm self-attention, cross-attention and feed-forward, each added to its input."""

    def __init__(self, dim: int, heads: int, head_dim: int, context_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, heads, head_dim, dropout=dropout)
        self.ff = FeedForward(dim, dropout)
        self.attn2 = CrossAttention(dim, heads, head_dim, context_dim, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, T, dim), context (B, S, context_dim), mask (B, S) bool over the context -> (B, T, dim)."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context, mask)
        out: Tensor = x + self.ff(self.norm3(x))
        return out
