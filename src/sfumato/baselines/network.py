"""A decoder-only transformer over the codes of a VQ autoencoder, row by row, after a prefix that conditions it.

Esser et al. 2021, section 3.2: the likelihood of an image's codes is the product of each one's conditional likelihood
given the earlier ones.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.conditioning.condition import Condition, ConditionSpec
from sfumato.errors import UserError
from sfumato.nn.attention import attend
from sfumato.nn.transformer import FeedForward, join_heads, split_heads
from sfumato.schema import Schema

KeysValues = tuple[Tensor, Tensor]


class CodeTransformerConfig(Schema):
    """Width and depth of the transformer over codes."""

    dim: int = Field(256, gt=0, le=65536)
    depth: int = Field(6, gt=0, le=256)
    head_dim: int = Field(32, gt=0, le=65536)
    """Channels of a head; must divide dim."""
    dropout: float = Field(0.0, ge=0, lt=1)


@dataclass(frozen=True)
class Cache:
    """The keys and values of the sequence so far in each layer, (B, H, S, D) each, and a mask (B, S)."""

    layers: tuple[KeysValues, ...]
    mask: Tensor


class Layer(nn.Module):
    """Pre-norm self-attention and gated feed-forward, each added to its input."""

    def __init__(self, dim: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads = dim // head_dim
        self.norm1 = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, past: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
        """x (B, T, dim), after the `past`; mask (B, T, S) over past and x -> the same, and its keys and values."""
        q, k, v = (split_heads(part, self.heads) for part in self.to_qkv(self.norm1(x)).chunk(3, dim=-1))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        x = x + self.dropout(self.to_out(join_heads(attend(q, k, v, mask))))
        return x + self.dropout(self.ff(self.norm2(x))), (k, v)


class CodeTransformer(nn.Module):
    """Logits of each code given the condition and the codes before it.

    Args:
        config: width and depth.
        codes: K, entries of the codebook.
        size: (h, w) of the latent.
        spec: the condition's vector becomes one token of the prefix, its tokens the others.

    Raises:
        UserError: head_dim does not divide dim, or the condition is spatial.
    """

    def __init__(self, config: CodeTransformerConfig, codes: int, size: tuple[int, int], spec: ConditionSpec) -> None:
        super().__init__()
        if config.dim % config.head_dim:
            raise UserError(f"transformer.head_dim {config.head_dim} does not divide transformer.dim {config.dim}")
        if spec.spatial_channels:
            raise UserError(
                "a transformer over codes supports texts, classes and layouts, not maps: choose another conditioner"
            )
        self.codes, self.size, dim = codes, size, config.dim
        self.code_emb = nn.Embedding(codes + 1, dim)  # the last row is the start of the sequence
        self.row_emb, self.column_emb = nn.Embedding(size[0], dim), nn.Embedding(size[1], dim)
        self.vector_in = None if spec.vector_dim is None else nn.Linear(spec.vector_dim, dim)
        self.tokens_in = None if spec.token_dim is None else nn.Linear(spec.token_dim, dim)
        self.layers = nn.ModuleList(Layer(dim, config.head_dim, config.dropout) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim)
        self.to_logits = nn.Linear(dim, codes, bias=False)
        for table in (self.code_emb, self.row_emb, self.column_emb, self.to_logits):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, condition: Condition, codes: Tensor) -> Tensor:
        """codes (B, T) long, row by row -> logits (B, T, K), those of position i from the codes before i."""
        B, T = codes.shape
        begin = torch.full_like(codes[:, :1], self.codes)
        x, valid = self._prefix(condition, B)
        P = x.shape[1]
        x = torch.cat([x, self._embed(torch.cat([begin, codes[:, :-1]], 1), 0)], 1)
        valid = torch.cat([valid, valid.new_ones(B, T)], 1)
        mask = self._causal(valid)
        for layer in self.layers:
            x, _ = layer(x, mask)
        out: Tensor = self.to_logits(self.norm(x[:, P:]))
        return out

    def begin(self, condition: Condition, n: int) -> tuple[Tensor, Cache]:
        """Logits (B, K) of the first code of n sequences, and the cache to continue with."""
        x, valid = self._prefix(condition, n)
        start = torch.full((n, 1), self.codes, device=self.code_emb.weight.device)
        x = torch.cat([x, self._embed(start, 0)], 1)
        valid = torch.cat([valid, valid.new_ones(n, 1)], 1)
        return self._advance(x, self._causal(valid), valid, [None] * len(self.layers))

    def step(self, codes: Tensor, position: int, cache: Cache) -> tuple[Tensor, Cache]:
        """codes (B,), those before `position` -> logits (B, K) of the code there, and the cache, one longer."""
        valid = torch.cat([cache.mask, cache.mask.new_ones(len(codes), 1)], 1)
        return self._advance(self._embed(codes[:, None], position), valid[:, None], valid, cache.layers)

    def _advance(
        self, x: Tensor, mask: Tensor, valid: Tensor, past: "list[None] | tuple[KeysValues, ...]"
    ) -> tuple[Tensor, Cache]:
        caches = []
        for layer, before in zip(self.layers, past, strict=True):
            x, keys_values = layer(x, mask, before)
            caches.append(keys_values)
        return self.to_logits(self.norm(x[:, -1])), Cache(tuple(caches), valid)

    def _embed(self, codes: Tensor, first: int) -> Tensor:
        """(B, T) codes before the positions first, first + 1, ... -> (B, T, dim)."""
        at = torch.arange(first, first + codes.shape[1], device=codes.device)
        place: Tensor = self.row_emb(at // self.size[1]) + self.column_emb(at % self.size[1])
        return self.code_emb(codes) + place

    def _prefix(self, condition: Condition, n: int) -> tuple[Tensor, Tensor]:
        """(n, P, dim) and a mask (n, P) bool, False for padding; P is 0 without a condition."""
        weight = self.code_emb.weight
        parts, masks = (
            [weight.new_zeros(n, 0, weight.shape[1])],
            [torch.ones(n, 0, dtype=torch.bool, device=weight.device)],
        )
        if self.vector_in is not None and condition.vector is not None:
            parts.append(self.vector_in(condition.vector)[:, None])
            masks.append(torch.ones(n, 1, dtype=torch.bool, device=weight.device))
        if self.tokens_in is not None and condition.tokens is not None:
            parts.append(self.tokens_in(condition.tokens))
            full = torch.ones(condition.tokens.shape[:2], dtype=torch.bool, device=weight.device)
            masks.append(full if condition.mask is None else condition.mask)
        return torch.cat(parts, 1), torch.cat(masks, 1)

    @staticmethod
    def _causal(valid: Tensor) -> Tensor:
        """(B, S) -> (B, S, S): every earlier position that is not padding, and itself, so that padding attends to
        something."""
        S = valid.shape[1]
        before = torch.ones(S, S, dtype=torch.bool, device=valid.device).tril()
        return (before & valid[:, None]) | torch.eye(S, dtype=torch.bool, device=valid.device)
