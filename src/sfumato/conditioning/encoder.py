"""The transformer that turns token ids into the condition's tokens; text and layouts share it.

It is the original's "BERT" (a pre-norm encoder with learned positions), under the original's key names.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from sfumato.nn.attention import attend
from sfumato.nn.transformer import join_heads, split_heads


class SelfAttention(nn.Module):
    """Multi-head self-attention; heads · head_dim need not be the width."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_k = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_v = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (split_heads(project(x), self.heads) for project in (self.to_q, self.to_k, self.to_v))
        out: Tensor = self.to_out(join_heads(attend(q, k, v, mask)))
        return out


class FeedForward(nn.Module):
    """Linear to four times the width, exact GELU, linear back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # The identity replaces the original's dropout, to keep the key names.
        self.net = nn.Sequential(
            nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU()), nn.Identity(), nn.Linear(4 * dim, dim)
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        out: Tensor = self.net(x)
        return out


class ResidualLayers(nn.Module):
    """`depth` times attention and feed-forward, each with a layer norm before and added to its input."""

    def __init__(self, dim: int, depth: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(depth):
            self.layers.append(nn.ModuleList([nn.LayerNorm(dim), SelfAttention(dim, heads, head_dim)]))
            self.layers.append(nn.ModuleList([nn.LayerNorm(dim), FeedForward(dim)]))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for pair in self.layers:
            assert isinstance(pair, nn.ModuleList)
            norm, layer = pair
            x = x + layer(norm(x), mask)
        return x


Initial = Literal["sinusoidal", "original"]
"""How the tables of tokens and positions start."""
WAVELENGTHS = 100.0
"""Ratio of the longest to the shortest wavelength of the sinusoids: texts here are tens of tokens long."""


def sinusoids(length: int, dim: int) -> Tensor:
    """(length, dim) sines and cosines of geometrically spaced frequencies, of variance one (Vaswani et al. 2017, §3.5).

    A shift by k tokens is the same rotation everywhere, so that attention to a neighbour is learned once and not anew
    at each position.
    """
    half = (dim + 1) // 2
    frequencies = WAVELENGTHS ** (-torch.arange(half) / half)
    angles = torch.arange(length)[:, None] * frequencies
    return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=1)[:, :dim]


class Positions(nn.Module):
    """A learned vector for each position."""

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(length, dim)


class TokenEncoder(nn.Module):
    """Token ids (B, M) -> embeddings (B, M, dim), after a final layer norm.

    Args:
        vocabulary: rows of the token table.
        dim: width. depth: pairs of attention and feed-forward (the original's n_layer).
        heads, head_dim: attention's inner width is heads · head_dim whatever the width.
        length: number of positions, the largest M.
        logits: hold the original's unused output layer `to_logits` (frozen), so that its checkpoints fit key for key.
        initial: original: normal numbers of standard deviation 0.02, which the first attention's output drowns;
            sinusoidal: tokens of standard deviation 1, positions as `sinusoids`. Both tables are trained.
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        depth: int,
        heads: int,
        head_dim: int,
        length: int,
        logits: bool = False,
        initial: Initial = "original",
    ) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(vocabulary, dim)
        self.pos_emb = Positions(length, dim)
        self.attn_layers = ResidualLayers(dim, depth, heads, head_dim)
        self.norm = nn.LayerNorm(dim)
        if initial == "sinusoidal":  # the token table has the standard deviation 1 already
            with torch.no_grad():
                self.pos_emb.emb.weight.copy_(sinusoids(length, dim))
        else:
            nn.init.normal_(self.token_emb.weight, std=0.02)
            nn.init.normal_(self.pos_emb.emb.weight, std=0.02)
        if logits:
            self.to_logits = nn.Linear(dim, vocabulary).requires_grad_(False)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask (B, M) bool, True at the tokens that may be attended."""
        x = self.token_emb(ids) + self.pos_emb.emb.weight[: ids.shape[1]]
        out: Tensor = self.norm(self.attn_layers(x, mask))
        return out

    def check(self, ids: Tensor) -> None:
        """Raises ValueError for ids that do not fit the tables; for ids on a GPU only the shape is checked."""
        rows, length = self.token_emb.num_embeddings, self.pos_emb.emb.num_embeddings
        if ids.dim() != 2 or ids.shape[1] > length:
            raise ValueError(f"token ids must have the shape (B, M) with M up to {length}, not {tuple(ids.shape)}")
        if ids.device.type == "cpu" and ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= rows):
            raise ValueError(f"token ids must be 0 .. {rows - 1}, not {int(ids.min())} .. {int(ids.max())}")


class OnDevices:
    """Constant ids, copied to each device once: a copy at each call would make the host wait."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self._make = make
        self._copies: dict[torch.device, Tensor] = {}

    def __call__(self, device: torch.device) -> Tensor:
        if device not in self._copies:
            with torch.device("cpu"):  # even if the model around it is built on another device
                self._copies[device] = self._make().to(device)
        return self._copies[device]


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's parameters."""
    return next(module.parameters()).device
