"""Attention on token-major tensors without transposes, forward and backward, by the native kernel if available."""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sfumato.engine import native
from sfumato.nn.attention import attend as plain_attend

WIDTH_STEP = 8
"""The native kernel requires head widths that are multiples of this."""
LONGEST = 8192
"""Number of keys above which a tile of scores no longer fits in the cache."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √D) v, as `sfumato.nn.attention.attend`.

    q (B, H, T, D); k, v (B, H, S, D), best with D contiguous; mask (B, S) bool, True where a key may be attended.
    Returns (B, H, T, D) laid out as (B, T, H, D), so that joining the heads is a view. Under autocast the operands are
    cast first, as for torch's own attention.
    """
    if torch.is_autocast_enabled("cpu") and q.device.type == "cpu":
        dtype = torch.get_autocast_dtype("cpu")
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if not (usable(q, k.shape[2]) and k.dtype == v.dtype == q.dtype):
        return plain_attend(q, k, v, mask)
    return _Attention.apply(q, k, v, mask)


def attend_packed(qkv: Tensor, heads: int, *, head_first: bool = False, mask: Tensor | None = None) -> Tensor:
    """Self-attention on one packed projection (B, T, 3·H·D).

    The channels are (q k v, head, D), or (head, q k v, D) if `head_first`. Returns (B, T, H·D). The gradient is written
    in one piece, packed as the input is.
    """
    B, T, C = qkv.shape
    if torch.is_autocast_enabled("cpu") and qkv.device.type == "cpu":
        qkv = qkv.to(torch.get_autocast_dtype("cpu"))
    q, k, v = _split(qkv, heads, head_first)
    if not (usable(q, T) and qkv.is_contiguous()):
        out = plain_attend(q, k, v, mask)
    else:
        out = _PackedAttention.apply(qkv, heads, head_first, mask)
    return out.transpose(1, 2).reshape(B, T, C // 3)


def usable(q: Tensor, keys: int) -> bool:
    """Whether the native kernel supports these queries with that many keys."""
    return (
        q.device.type == "cpu"
        and q.dtype in (torch.float32, torch.bfloat16)
        and q.shape[-1] % WIDTH_STEP == 0
        and 0 < keys <= LONGEST
        and q.numel() > 0
        and native.library() is not None
    )


def _split(qkv: Tensor, heads: int, head_first: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Views (B, H, T, D) of a packed projection."""
    B, T, C = qkv.shape
    D = C // (3 * heads)
    parts = (
        qkv.view(B, T, heads, 3, D).permute(3, 0, 2, 1, 4)
        if head_first
        else (qkv.view(B, T, 3, heads, D).permute(2, 0, 3, 1, 4))
    )
    return parts[0], parts[1], parts[2]


def _rows(x: Tensor) -> Tensor:
    """The same tensor with contiguous rows."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(*tensors: Tensor) -> Any:
    numbers = [s for t in tensors for s in t.stride()[:3]]
    return (ctypes.c_long * len(numbers))(*numbers)


def _sizes(q: Tensor, keys: int) -> Any:
    B, H, T, D = q.shape
    return (ctypes.c_long * 5)(B, H, T, keys, D)


def _forward(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, keep: bool) -> tuple[Tensor, Tensor | None]:
    """The result and, with `keep`, each query's log of the sum of exponentials."""
    B, H, T, D = q.shape
    out = q.new_empty(B, T, H, D).transpose(1, 2)
    lse = q.new_empty(B, H, T, dtype=torch.float32) if keep else None
    native.kernels().sfumato_attention(
        q.dtype == torch.bfloat16,
        *(native.pointer(t) for t in (q, k, v, out, lse, allowed)),
        *(_sizes(q, k.shape[2]), _strides(q, k, v, out), D**-0.5, torch.get_num_threads()),
    )
    return out, lse


def _backward(saved: tuple[Tensor, ...], grad: Tensor, into: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, out, lse, allowed = saved
    grad = _rows(grad)
    native.kernels().sfumato_attention_backward(
        q.dtype == torch.bfloat16,
        *(native.pointer(t) for t in (q, k, v, out, grad, lse, allowed, *into)),
        *(_sizes(q, k.shape[2]), _strides(q, k, v, out, *into, grad), q.shape[-1] ** -0.5, torch.get_num_threads()),
    )


def _token_major(x: Tensor) -> Tensor:
    """An empty tensor of x's shape (B, H, T, D) in (B, T, H, D) order."""
    B, H, T, D = x.shape
    return x.new_empty(B, T, H, D).transpose(1, 2)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = _rows(q), _rows(k), _rows(v)
        allowed = None if mask is None else mask.contiguous()
        out, lse = _forward(q, k, v, allowed, any(ctx.needs_input_grad))
        ctx.save_for_backward(q, k, v, out, lse, allowed)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once: a checkpointed block unpacks them a single time
        q, k, v, *_ = saved
        into = _token_major(q), _token_major(k), _token_major(v)
        _backward(saved, grad, into)
        return *into, None


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, head_first: bool, mask: Tensor | None) -> Tensor:
        allowed = None if mask is None else mask.contiguous()
        out, lse = _forward(*_split(qkv, heads, head_first), allowed, any(ctx.needs_input_grad))
        ctx.save_for_backward(qkv, out, lse, allowed)
        ctx.heads, ctx.head_first = heads, head_first
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, out, lse, allowed = ctx.saved_tensors
        gradient = torch.empty_like(qkv)
        saved = *_split(qkv, ctx.heads, ctx.head_first), out, lse, allowed
        _backward(saved, grad, _split(gradient, ctx.heads, ctx.head_first))
        return gradient, None, None, None
