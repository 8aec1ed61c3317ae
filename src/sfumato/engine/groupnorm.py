"""Group normalisation, an affine map that may differ per sample, and SiLU, in one pass over a channels-last image."""

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sfumato.engine import native
from sfumato.engine.group_limits import WIDEST_GROUP

LANES = 16
"""The native kernel requires channel counts that are multiples of this."""


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    silu: bool = False,
    add: Tensor | None = None,
    scale_shift: tuple[Tensor, Tensor] | None = None,
    reuse: bool = False,
) -> Tensor:
    """silu(norm(x + add) * (1 + scale) + shift), every part after `norm` and the sum optional.

    x (B, C, H, W), float32 or bf16; weight, bias (C,); add, scale, shift (B, C). Returns x's shape, dtype and memory
    format. Differentiable in all tensors. The native kernel is used for contiguous channels-last x on the CPU, one in
    Triton for such x on a GPU; anything else is computed by torch's own operations. With `reuse` the result may
    overwrite x where no gradient is recorded.
    """
    on_gpu = usable_on_gpu(x, groups)
    if not (on_gpu or usable(x, groups)):
        return _plain(x, groups, weight, bias, eps, silu, add, scale_shift)
    gain, offset = weight, bias
    if scale_shift is not None:
        scale, shift = scale_shift[0].float(), scale_shift[1].float()
        gain, offset = gain.float() * (1 + scale), torch.addcmul(shift, offset.float(), 1 + scale)
    if on_gpu:
        kernel = gpu_kernel(x.device)
        assert kernel is not None
        added = None if add is None else add.contiguous()
        return kernel(x, groups, gain.contiguous(), offset.contiguous(), added, eps, silu)
    gain, offset, add = gain.float(), offset.float(), None if add is None else add.float()
    if not torch.is_grad_enabled():
        return _forward(x, x if reuse else torch.empty_like(x), gain, offset, add, groups, eps, silu)[0]
    return _GroupNorm.apply(x, gain, offset, add, groups, eps, silu)


def norm(
    layer: nn.Module,
    x: Tensor,
    *,
    silu: bool = False,
    add: Tensor | None = None,
    scale_shift: tuple[Tensor, Tensor] | None = None,
    reuse: bool = False,
) -> Tensor:
    """`group_norm` with the parameters of an nn.GroupNorm."""
    assert isinstance(layer, nn.GroupNorm)
    groups, eps = layer.num_groups, layer.eps
    return group_norm(
        x, groups, layer.weight, layer.bias, eps, silu=silu, add=add, scale_shift=scale_shift, reuse=reuse
    )


def usable(x: Tensor, groups: int) -> bool:
    """Whether the native kernel supports this image."""
    return (
        x.dim() == 4
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.shape[1] % LANES == 0
        and x.shape[1] % groups == 0
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and native.library() is not None
    )


def usable_on_gpu(x: Tensor, groups: int) -> bool:
    """Whether the kernel in Triton supports this image here; SFUMATO_NATIVE=0 disables it too."""
    return (
        x.device.type == "cuda"
        and x.dim() == 4
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and x.shape[1] % groups == 0
        and x.shape[1] // groups <= WIDEST_GROUP
        and 0 < x[:1].numel() < 2**31
        and x.is_contiguous(memory_format=torch.channels_last)
        and os.environ.get("SFUMATO_NATIVE", "1") != "0"
        and gpu_kernel(x.device) is not None
    )


@lru_cache(maxsize=16)
def gpu_kernel(device: torch.device) -> Callable[..., Tensor] | None:
    """The kernel in Triton; None without the package, where it cannot compile, or where a trial gives a wrong
    result."""
    try:
        from sfumato.engine.triton_groupnorm import group_norm as kernel

        return kernel if _is_correct(kernel, device) else None
    except Exception:  # compilers and drivers raise any exception, and the plain path always works
        return None


@torch.inference_mode(False)
@torch.enable_grad()
def _is_correct(kernel: Callable[..., Tensor], device: torch.device) -> bool:
    """Whether a kernel gives the plain result and gradients for a small image."""
    x = torch.linspace(-1, 2, 2 * 64 * 5 * 8, device=device).reshape(2, 64, 5, 8)
    gain, bias = torch.linspace(1, 2, 64, device=device), torch.linspace(-1, 1, 64, device=device)
    add = torch.linspace(-1, 1, 128, device=device).reshape(2, 64)
    x = x.contiguous(memory_format=torch.channels_last)
    leaves = [t.requires_grad_() for t in (x, gain, bias, add)]
    with torch.autocast(device.type, enabled=False):
        result = kernel(x, 16, gain, bias, add, 1e-5, True)
        expected = _plain(x, 16, gain, bias, 1e-5, True, add, None)
        upstream = torch.cos(37 * expected.detach())
        pairs = zip(
            (result.detach(), *torch.autograd.grad(result, leaves, upstream)),
            (expected.detach(), *torch.autograd.grad(expected, leaves, upstream)),
            strict=True,
        )
    return all((a - b).abs().max().item() < 1e-3 * max(1.0, b.abs().max().item()) for a, b in pairs)


def _plain(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    silu: bool,
    add: Tensor | None,
    scale_shift: tuple[Tensor, Tensor] | None,
) -> Tensor:
    if add is not None:
        x = x + add.to(x.dtype)[:, :, None, None]
    if weight.dtype != x.dtype or (x.element_size() < 4 and x.device.type == "cpu"):
        x = F.group_norm(x.float(), groups, weight.float(), bias.float(), eps).to(x.dtype)
    else:
        x = F.group_norm(x, groups, weight, bias, eps)
    if scale_shift is not None:
        scale, shift = (part.to(x.dtype)[:, :, None, None] for part in scale_shift)
        x = x * (1 + scale) + shift
    return F.silu(x) if silu else x


def _forward(
    x: Tensor, y: Tensor, gain: Tensor, bias: Tensor, add: Tensor | None, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """Fills y (which may be x); returns it with the tensors required by the gradient."""
    B, C, H, W = x.shape
    gain, bias = gain.contiguous(), bias.contiguous()
    add = None if add is None else add.contiguous()
    mean, rstd = x.new_empty(2, B, groups, dtype=torch.float32).unbind()
    native.kernels().sfumato_groupnorm(
        x.dtype == torch.bfloat16,
        *(native.pointer(t) for t in (x, y, gain, bias, add, mean, rstd)),
        *(B, H * W, C, groups, gain.dim() == 2, eps, silu, torch.get_num_threads()),
    )
    return y, gain, bias, add, mean, rstd


class _GroupNorm(torch.autograd.Function):
    """gain and bias are (C,) or (B, C), add (B, C) or None, all float32; x channels-last."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, add: Tensor | None, groups: int, eps: float, silu: bool
    ) -> Tensor:
        y, *saved = _forward(x, torch.empty_like(x), gain, bias, add, groups, eps, silu)
        ctx.save_for_backward(x, *saved)
        ctx.groups, ctx.silu = groups, silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, bias, add, mean, rstd = ctx.saved_tensors
        B, C, H, W = x.shape
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        sums = x.new_empty(2 if add is None else 3, B, C, dtype=torch.float32)
        native.kernels().sfumato_groupnorm_backward(
            x.dtype == torch.bfloat16,
            *(native.pointer(t) for t in (x, dy, dx, gain, bias, add, mean, rstd)),
            *(native.pointer(t) for t in (sums[0], sums[1], None if add is None else sums[2])),
            *(B, H * W, C, ctx.groups, gain.dim() == 2, ctx.silu, torch.get_num_threads()),
        )
        parameters = sums[:2] if gain.dim() == 2 else sums[:2].sum(1)
        return dx, parameters[0], parameters[1], None if add is None else sums[2], None, None, None
