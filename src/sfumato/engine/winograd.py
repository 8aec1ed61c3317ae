"""3×3 convolutions of float32 images on the CPU with a quarter of the products (`kernels/winograd.h`).

More than twice as fast as the processor's library for sufficiently large images, forward and backward, with two to
three times the rounding error: 3e-6 of the largest value. Winograd 1980; Lavin and Gray 2016, arXiv 1509.09308.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sfumato.engine import native

TILE = 4
PLAIN, TURNED, PANELS = range(3)
"""Memory layouts of a weight, by the kernels' numbers."""
PLACES_PER_LANE = 64
"""Output positions per channel, over the vector's width, from which it is faster, gradients included (measured)."""
PACKED_PLACES_PER_LANE = 8
"""The same for weights in panels, forward only."""


def suits(weight: Tensor, padding: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int) -> bool:
    """Whether a convolution with weight (C', C, k, k) is supported by the kernels, on this machine."""
    out_channels, in_channels, *kernel = weight.shape
    geometry = (kernel, list(stride), list(dilation), groups) == ([3, 3], [1, 1], [1, 1], 1)
    if not (geometry and set(padding) <= {0, 1} and weight.dtype == torch.float32 and weight.device.type == "cpu"):
        return False
    if native.library() is None:
        return False
    panel = _panel()
    return in_channels % panel == 0 and out_channels % panel == 0


def worthwhile(x: Tensor, padding: Sequence[int] = (1, 1), scale: int = 1, packed: bool = False) -> bool:
    """Whether the gain exceeds the cost of the tiles at the edges and of the transform of the weights, `packed` or not.

    With `scale` 2 the gain is relative to the rewriting of engine/upsample.py, and smaller.
    """
    B = len(x)
    height, width = _result_size(x, padding, scale)
    if min(B, height, width) < 1:
        return False
    covered = -(-height // TILE) * -(-width // TILE) * TILE**2
    per_lane = PACKED_PLACES_PER_LANE if packed else PLACES_PER_LANE
    fewest = scale * per_lane * native.kernels().sfumato_vector_width()
    return B * height * width >= fewest and 2 * height * width >= covered


def to_panels(weight: Tensor) -> Tensor:
    """A weight (C', C, 3, 3) in the layout that the kernels read fastest: (C'/P, C, 3, 3, P), panels of P channels."""
    return weight.unflatten(0, (-1, _panel())).permute(0, 2, 3, 4, 1).contiguous()


def from_panels(panels: Tensor) -> Tensor:
    """The weight (C', C, 3, 3), channels-last."""
    return panels.permute(0, 4, 1, 2, 3).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def filtered(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    padding: Sequence[int] = (1, 1),
    scale: int = 1,
    reuse: bool = False,
    turned: bool = False,
) -> Tensor:
    """conv(x) + residual, without gradients; x (B, C, H, W), weight (C', C, 3, 3), residual all in channels-last order.

    The weight may be in panels instead. With `scale` 2 the convolution is of x upsampled by repetition. With `reuse`
    the result overwrites the residual. With `turned` the weight is (C, C', 3, 3), and this is the gradient of that
    convolution's input from its output's.
    """
    B, C, H, W = x.shape
    order = PANELS if weight.dim() == 5 else TURNED if turned else PLAIN
    out_channels = weight.shape[0] * weight.shape[4] if order == PANELS else weight.shape[1 if turned else 0]
    if residual is not None and reuse:
        y = residual
    else:
        size = (B, out_channels, *_result_size(x, padding, scale))
        y = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
    _called(
        native.kernels().sfumato_winograd,
        *(native.pointer(t) for t in (x, weight, bias, residual, y)),
        *(B, H, W, C, out_channels, *padding, scale, order),
    )
    return y


class FilteredConv2d(nn.Conv2d):
    """An nn.Conv2d that uses the kernels forward and backward where they are faster."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """conv(x) + residual."""
        if usable(self, x):
            if residual is not None:
                residual = residual.contiguous(memory_format=torch.channels_last)
            y: Tensor = _Filtered.apply(x, self.weight, self.bias, residual, 1)
            return y
        return super().forward(x) if residual is None else residual + super().forward(x)


def usable(layer: nn.Conv2d, x: Tensor, scale: int = 1) -> bool:
    """Whether the kernels support this image, in its memory layout, and its gradients."""
    return (
        x.dim() == 4
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")
        and layer.padding_mode == "zeros"
        and layer.padding == (1, 1)
        and suits(layer.weight, (1, 1), layer.stride, layer.dilation, layer.groups)
        and worthwhile(x, scale=scale)
    )


def doubled(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """layer(interpolate(x, scale_factor=2, mode="nearest")) where `usable` with scale 2; differentiable."""
    y: Tensor = _Filtered.apply(x, layer.weight, layer.bias, None, 2)
    return y


class _Filtered(torch.autograd.Function):
    """Convolutions padded by one, whose gradients are such too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, scale: int
    ) -> Tensor:
        weight = weight.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        ctx.scale = scale
        return filtered(x, weight, bias, residual, scale=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_residual, *_ = ctx.needs_input_grad
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = dw = None
        if needs_x:
            dx = filtered(dy, weight, None, turned=True)
            if ctx.scale == 2:
                dx = F.avg_pool2d(dx, 2, divisor_override=1)  # the sum of each four positions
        if needs_weight:
            dw = _weight_gradient(x, dy, ctx.scale)
        return dx, dw, dy.sum((0, 2, 3)) if needs_bias else None, dy if needs_residual else None, None


def _weight_gradient(x: Tensor, dy: Tensor, scale: int) -> Tensor:
    B, C, H, W = x.shape
    gradient = torch.empty(dy.shape[1], C, 3, 3, memory_format=torch.channels_last)
    _called(
        native.kernels().sfumato_winograd_gradient,
        *(native.pointer(t) for t in (x, dy, gradient)),
        *(B, H, W, C, dy.shape[1], 1, 1, scale),
    )
    return gradient


def _result_size(x: Tensor, padding: Sequence[int], scale: int) -> tuple[int, int]:
    """(H', W') of the convolution of x."""
    return scale * x.shape[2] + 2 * padding[0] - 2, scale * x.shape[3] + 2 * padding[1] - 2


def _panel() -> int:
    """Channels that the kernels keep in registers."""
    return 2 * int(native.kernels().sfumato_vector_width())


def _called(kernel: Any, *arguments: int | None) -> None:
    if not kernel(*arguments, torch.get_num_threads()):
        raise MemoryError("not enough memory for a convolution; make the batch or the image smaller")
