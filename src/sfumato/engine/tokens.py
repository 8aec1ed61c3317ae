"""Layer normalisation and the gated GELU on tokens, each in one pass forward and one or two backward."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sfumato.engine import native
from sfumato.engine.groupnorm import LANES


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer normalisation over the last axis of x (..., C); float32 statistics; returns x's dtype."""
    if not usable(x, x.shape[-1]):
        return _plain_layer_norm(x, weight, bias, eps)
    result: Tensor = _LayerNorm.apply(x, weight.float(), bias.float(), eps)
    return result


def _plain_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Without autocast, which on a GPU would return float32; its kernels require input and weights of one type."""
    if x.device.type == "cpu":
        return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps)
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x.to(weight.dtype), weight.shape, weight, bias, eps).to(x.dtype)


def geglu(x: Tensor) -> Tensor:
    """value · gelu(gate) of x (..., 2 N) = value ‖ gate, with the exact (erf) GELU; returns (..., N)."""
    if not usable(x, x.shape[-1] // 2):
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)
    result: Tensor = _GEGLU.apply(x)
    return result


def usable(x: Tensor, width: int) -> bool:
    """Whether the native kernels support these rows."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and width % LANES == 0
        and x.numel() > 0
        and x.is_contiguous()
        and native.library() is not None
    )


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        C = x.shape[-1]
        rows = x.numel() // C
        y = torch.empty_like(x)
        mean, rstd = x.new_empty(2, rows, dtype=torch.float32).unbind()
        weight, bias = weight.contiguous(), bias.contiguous()
        native.kernels().sfumato_layernorm(
            x.dtype == torch.bfloat16,
            *(t.data_ptr() for t in (x, y, weight, bias, mean, rstd)),
            *(rows, C, eps, torch.get_num_threads()),
        )
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        C, threads = x.shape[-1], torch.get_num_threads()
        dy, dx = dy.contiguous(), torch.empty_like(x)
        sums = x.new_empty(2, threads, C, dtype=torch.float32)
        native.kernels().sfumato_layernorm_backward(
            x.dtype == torch.bfloat16,
            *(t.data_ptr() for t in (x, dy, dx, weight, mean, rstd, sums[0], sums[1])),
            *(x.numel() // C, C, threads),
        )
        weight_grad, bias_grad = sums.sum(1).unbind()
        return dx, weight_grad, bias_grad, None


class _GEGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        N = x.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], N)
        rows, threads = x.numel() // (2 * N), torch.get_num_threads()
        native.kernels().sfumato_geglu(x.dtype == torch.bfloat16, x.data_ptr(), y.data_ptr(), rows, N, threads)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        N = x.shape[-1] // 2
        dy, dx = dy.contiguous(), torch.empty_like(x)
        native.kernels().sfumato_geglu_backward(
            x.dtype == torch.bfloat16,
            *(t.data_ptr() for t in (x, dy, dx)),
            *(x.numel() // (2 * N), N, torch.get_num_threads()),
        )
        return dx
