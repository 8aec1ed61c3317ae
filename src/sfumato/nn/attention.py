"""Scaled dot-product attention: the one call every attention layer of the project makes."""

import torch
import torch.nn.functional as F
from torch import Tensor

EXPLICIT_KEYS = 512
"""Up to this many keys, bfloat16 attention on the CPU is two matrix products around a softmax (see `attend`)."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √D) v.

    q (B, H, T, D); k, v (B, H, S, D); mask (B, S), or (B, T, S) per query, bool, True where a key may be attended
    (at least one in each row). Returns (B, H, T, D).
    """
    allowed = None if mask is None else mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= EXPLICIT_KEYS:
        # The CPU's fused kernel gains nothing from bfloat16, and its backward pass takes two to seven times as long.
        return _explicit(q, k, v, allowed)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


def _explicit(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))  # (B, H, T, S)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return torch.matmul(scores.softmax(-1), v)
