"""Nearest-neighbour upsampling by 2 and a 3×3 convolution as one 2×2 convolution on the small image: 4/9 of the
arithmetic.

Each output pixel's 3×3 window covers only 2×2 distinct small pixels; which ones, and the sums of weights over them,
depend on the parity of its row and column. A 2×2 convolution to four times the channels computes the four parities at
once, and an interleaving copy puts them in place. Exact up to the rounding of the summed weights.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sfumato.engine import native, winograd
from sfumato.engine.packing import PackedConv2d

FEWEST_POSITIONS = 512
SMALLEST_SIDE = 8
STRIP_BYTES = 32 * 2**20


def upsample_conv(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(interpolate(x, scale_factor=2, mode="nearest")) for a 3×3 layer; (B, C, H, W) -> (B, C', 2 H, 2 W)."""
    if isinstance(layer, PackedUpsample):
        return layer(x)
    if isinstance(layer, PackedConv2d):
        return layer(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert isinstance(layer, nn.Conv2d)
    if winograd.usable(layer, x, scale=2):
        return winograd.doubled(layer, x)
    if not (usable(x, layer) and worthwhile(x)):
        plain: Tensor = layer(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return plain
    weight, bias = phase_parameters(layer.weight, layer.bias)
    phases = F.conv2d(x, weight, bias, padding=1).contiguous(memory_format=torch.channels_last)
    return interleave(phases)


class PackedUpsample(nn.Module):
    """The rewritten convolution with packed weights, for inference; large images are processed in strips.

    Where `winograd` supports the convolution itself, large images use that, with even fewer products.
    """

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        direct = PackedConv2d.of(layer, dtype)
        self.dtype, self.channels = dtype, layer.out_channels
        self.direct = direct if direct.filters else None
        self.phases = None if direct.filters else _packed_phases(layer, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', 2 H, 2 W)."""
        if self.direct is not None and winograd.worthwhile(x, scale=2, packed=True):
            x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
            return winograd.filtered(x, self.direct.panels(), self.direct.bias, scale=2)
        if self.phases is None:
            assert self.direct is not None
            self.phases = _packed_phases(self.direct, self.dtype)
        return self._rewritten(x, self.phases)

    def _rewritten(self, x: Tensor, phases: PackedConv2d) -> Tensor:
        B, _, H, W = x.shape
        strips = 1
        while 4 * self.channels * H * W * x.element_size() > strips * STRIP_BYTES and H % (strips * 2) == 0:
            strips *= 2
        if strips == 1:
            return interleave(phases(F.pad(x, (0, 0, 1, 1))))
        size = (B, self.channels, 2 * H, 2 * W)
        image = torch.empty(size, dtype=self.dtype, memory_format=torch.channels_last)
        rows = H // strips
        for b in range(B):
            for start in range(0, H, rows):
                above, below = int(start > 0), int(start + rows < H)  # neighbours; zeros outside the image
                strip = F.pad(x[b : b + 1, :, start - above : start + rows + below], (0, 0, 1 - above, 1 - below))
                part = image[b : b + 1, :, 2 * start : 2 * (start + rows)]
                part.copy_(interleave(phases(strip)))
        return image


def rewritable(layer: nn.Conv2d) -> bool:
    """Whether a convolution after the upsampling is of the kind that can be rewritten."""
    same = layer.stride == (1, 1) and layer.padding == (1, 1) and layer.padding_mode == "zeros"
    return layer.kernel_size == (3, 3) and same and layer.groups == 1


def worthwhile(x: Tensor) -> bool:
    """Whether the gain exceeds the cost of summing the weights and of the additional row and column (measured)."""
    B, _, H, W = x.shape
    return B * H * W >= FEWEST_POSITIONS and min(H, W) >= SMALLEST_SIDE


def usable(x: Tensor, layer: nn.Conv2d) -> bool:
    """Whether this convolution can be rewritten for this image."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and rewritable(layer)
        and native.library() is not None
    )


def phase_parameters(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight (4 C', C, 2, 2) and bias (4 C',) of the four parities (row, column), channels-last, for (C', C, 3, 3)."""
    rows = _pairs(weight, 2)
    kernels = torch.stack([kernel for row in rows for kernel in _pairs(row, 3)])  # (4, C', C, 2, 2)
    flat = kernels.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return flat, None if bias is None else bias.repeat(4)


def interleave(phases: Tensor) -> Tensor:
    """(B, 4 C, H + 1, W + 1), channels (row parity, column parity, C) -> (B, C, 2 H, 2 W), both channels-last."""
    if native.library() is not None and phases.device.type == "cpu":
        result: Tensor = _Interleave.apply(phases)
        return result
    B, C, H, W = phases.shape
    parities = phases.unflatten(1, (2, 2, C // 4))
    rows = [torch.stack([parities[:, a, b, :, a : H - 1 + a, b : W - 1 + b] for b in (0, 1)], -1) for a in (0, 1)]
    image = torch.stack(rows, 3).reshape(B, C // 4, 2 * (H - 1), 2 * (W - 1))
    return image.contiguous(memory_format=torch.channels_last)


def _packed_phases(layer: nn.Conv2d | PackedConv2d, dtype: torch.dtype) -> PackedConv2d:
    """Summed in the layer's type, then rounded to `dtype`."""
    weight, bias = phase_parameters(layer.weight, layer.bias)
    return PackedConv2d(weight.to(dtype), None if bias is None else bias.to(dtype), padding=(0, 1))


def _pairs(weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Three taps on a doubled axis as two taps on the axis itself, for the even and for the odd positions."""
    first, middle, last = weight.unbind(axis)
    return torch.stack([first, middle + last], axis), torch.stack([first + middle, last], axis)


class _Interleave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, phases: Tensor) -> Tensor:
        B, C, H, W = phases.shape
        ctx.phases_shape = phases.shape
        size = (B, C // 4, 2 * (H - 1), 2 * (W - 1))
        image = torch.empty(size, dtype=phases.dtype, memory_format=torch.channels_last)
        _move("sfumato_interleave", phases, image)
        return image

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous(memory_format=torch.channels_last)
        B, C, H, W = ctx.phases_shape
        phases = grad.new_zeros(B, H, W, C).permute(0, 3, 1, 2)
        _move("sfumato_interleave_backward", phases, grad)
        return phases


def _move(kernel: str, phases: Tensor, image: Tensor) -> None:
    B, C, H, W = phases.shape
    getattr(native.kernels(), kernel)(
        phases.data_ptr(),
        image.data_ptr(),
        *(B, H - 1, W - 1, C // 4 * phases.element_size(), torch.get_num_threads()),
    )
