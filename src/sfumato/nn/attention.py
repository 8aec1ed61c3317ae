"""Scaled dot-product attention: the one call every attention layer of the project makes."""

import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √D) v.

    q (B, H, T, D); k, v (B, H, S, D); mask (B, S) bool, True where a key may be attended. Returns (B, H, T, D).
    """
    allowed = None if mask is None else mask[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
