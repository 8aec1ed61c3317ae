"""Convolutions and linear layers with weights stored in the layout of the processor's library (oneDNN), for inference
only.

On a GPU the layers store their weights in the type of the computation, and use torch's plain operations.

torch's eager layers reorder the weights in every call, and its float32 linear layers use a library that is slow on some
processors. The entry points used here are those of torch's own compiler, not public: `packs` tries them once,
and where they are missing or wrong the layers use torch's plain operations. Gradients do not flow through packed
layers.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.engine import winograd


@lru_cache(maxsize=4)
def packs(dtype: torch.dtype) -> bool:
    """Whether this build of torch can pack weights of a type on the CPU, and computes correctly with them."""
    if not torch.backends.mkldnn.is_available():
        return False
    image = torch.linspace(-1, 1, 2 * 16 * 5 * 5).reshape(2, 16, 5, 5).to(dtype)
    image = image.contiguous(memory_format=torch.channels_last)
    kernel = torch.linspace(1, -1, 16 * 16 * 9).reshape(16, 16, 3, 3).to(dtype)
    tokens, matrix = image.flatten(2).transpose(1, 2).contiguous(), kernel[:, :, 1, 1].contiguous()
    bias = torch.ones(16, dtype=dtype)
    try:
        packed = _pack_kernel(kernel, _ONES, _ONES, _ONES, 1, image.shape)
        conv = _convolve(image, packed, bias, _ONES, _ONES, _ONES, 1, image)
        into = _convolve(image, packed, bias, _ONES, _ONES, _ONES, 1, image.clone(), reuse=True)
        line = _project(tokens, _pack_matrix(matrix, tokens.shape), bias, tokens)
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False
    expected = F.conv2d(image.float(), kernel.float(), bias.float(), padding=1) + image.float()
    expected_line = F.linear(tokens.float(), matrix.float(), bias.float()) + tokens.float()
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    return all(
        (a.float() - b).abs().max().item() <= tolerance * b.abs().max().item()
        for a, b in ((conv, expected), (into, expected), (line, expected_line))
    )


class Packed(nn.Module):
    """A weight that stays packed for the shape of its last call, except the batch; `weight` unpacks it.

    Guidance in an interval alternates between calls with one sample and two: the packed weight works for both.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.dtype = weight.dtype
        self.bias = None if bias is None else bias.detach()
        self._weight = weight.detach()
        self._shape: tuple[int, ...] | None = None

    @property
    def weight(self) -> Tensor:
        """The plain weight."""
        return self._weight if self._shape is None else self._weight.to_dense(self.dtype)

    def __getstate__(self) -> dict[str, Any]:
        """Copies have the plain weight, since a packed one has no storage to copy."""
        return {**self.__dict__, "_weight": self.weight, "_shape": None}


class PackedConv2d(Packed):
    """An nn.Conv2d, its weight packed at the first call; 3×3 ones may use `winograd`."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
    ) -> None:
        super().__init__(weight, bias)
        self.geometry = list(padding), list(stride), list(dilation), groups
        self.filters = winograd.suits(weight, *self.geometry)

    @classmethod
    def of(cls, layer: nn.Conv2d, dtype: torch.dtype) -> "PackedConv2d":
        """The layer with its weights as `dtype`; raises TypeError where it is not `packable`."""
        if not packable(layer) or isinstance(layer.padding, str):
            raise TypeError(f"a convolution padded by {layer.padding_mode!r}, {layer.padding!r} cannot be packed")
        bias = None if layer.bias is None else layer.bias.to(dtype)
        geometry = layer.stride, layer.padding, layer.dilation, layer.groups
        if layer.padding_mode == "reflect":
            packed = PackedReflectedConv2d(layer.weight.to(dtype), bias, layer.stride, (0, 0), *geometry[2:])
            rows, columns = layer.padding
            packed.border = (columns, columns, rows, rows)
            return packed
        return cls(layer.weight.to(dtype), bias, *geometry)

    def forward(self, x: Tensor, residual: Tensor | None = None, reuse: bool = False) -> Tensor:
        """conv(x) + residual, in the weight's type; with `reuse` the result may overwrite the residual."""
        padding, stride, dilation, groups = self.geometry
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        if residual is not None:
            residual = residual.to(self.dtype).contiguous(memory_format=torch.channels_last)
        if self.filters and winograd.worthwhile(x, padding, packed=True):
            return winograd.filtered(x, self.panels(), self.bias, residual, padding, reuse=reuse)
        if x.device.type != "cpu" or not packs(self.dtype):
            y = F.conv2d(x, self.unpacked(), self.bias, stride, padding, dilation, groups)
            return y if residual is None else y + residual
        if self._shape != packed_shape(x):
            self._weight = _pack_kernel(self.weight, padding, stride, dilation, groups, packed_shape(x))
            self._shape = packed_shape(x)
        return _convolve(x, self._weight, self.bias, padding, stride, dilation, groups, residual, reuse)

    @property
    def weight(self) -> Tensor:
        """The plain weight."""
        return winograd.from_panels(self._weight) if self._in_panels() else super().weight

    def unpacked(self) -> Tensor:
        """The plain weight, channels-last, stored so until a call packs it."""
        self._weight, self._shape = self.weight.contiguous(memory_format=torch.channels_last), None
        return self._weight

    def panels(self) -> Tensor:
        """The weight in the layout of `winograd`, stored so until a call packs it differently."""
        if not self._in_panels():
            self._weight, self._shape = winograd.to_panels(self.weight), None
        return self._weight

    def _in_panels(self) -> bool:
        return self._weight.dim() == 5


class PackedReflectedConv2d(PackedConv2d):
    """A convolution that mirrors its input at the border: padded first, then convolved without padding."""

    border = (1, 1, 1, 1)
    """Columns before and after, rows before and after."""

    def forward(self, x: Tensor, residual: Tensor | None = None, reuse: bool = False) -> Tensor:
        return super().forward(F.pad(x.to(self.dtype), self.border, "reflect"), residual, reuse)


def packable(layer: nn.Conv2d) -> bool:
    """Whether a convolution has a packed form: padded by numbers, with zeros or mirrored."""
    return layer.padding_mode in ("zeros", "reflect") and not isinstance(layer.padding, str)


class PackedLinear(Packed):
    """A linear map of the last axis, its weight packed at the first call."""

    @classmethod
    def of(cls, *layers: nn.Module, dtype: torch.dtype) -> "PackedLinear":
        """Linear layers or 1×1 convolutions of one input, as one map to their concatenated outputs."""
        weights, biases = [], []
        for layer in layers:
            assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
            weights.append(layer.weight.flatten(1))
            biases.append(layer.bias)
        present = [bias for bias in biases if bias is not None]
        bias = torch.cat(present).to(dtype) if len(present) == len(layers) else None
        return cls(torch.cat(weights).to(dtype), bias)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x Wᵀ + b + residual, in the weight's type."""
        x = x.to(self.dtype)
        if residual is not None:
            residual = residual.to(self.dtype)
        if x.device.type != "cpu" or not packs(self.dtype):
            y = F.linear(x, self._weight, self.bias)
            return y if residual is None else y + residual
        if self._shape != packed_shape(x):
            self._weight = _pack_matrix(self.weight, packed_shape(x))
            self._shape = packed_shape(x)
        return _project(x, self._weight, self.bias, residual)


def convolve(layer: nn.Module, x: Tensor, residual: Tensor, reuse: bool = False) -> Tensor:
    """residual + layer(x), in one pass where the layer is packed; with `reuse` it may overwrite the residual then."""
    if isinstance(layer, PackedConv2d):
        return layer(x, residual, reuse)
    return layer(x, residual) if isinstance(layer, winograd.FilteredConv2d) else residual + layer(x)


def project(layer: nn.Module, tokens: Tensor, residual: Tensor | None = None) -> Tensor:
    """A linear layer, or a 1×1 convolution as one, on tokens (B, T, C), plus a residual."""
    if isinstance(layer, PackedLinear):
        return layer(tokens, residual)
    assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    y = F.linear(tokens, layer.weight.flatten(1), layer.bias)
    return y if residual is None else residual + y


_ONES = [1, 1]
MANY = 2
"""Samples for which a weight is packed where there are several: the layout that is fastest for two is within a few per
cent of the fastest for more, and is a fifth slower for one."""


def packed_shape(x: Tensor) -> tuple[int, ...]:
    """The shape for which a weight is packed to be applied to x.

    It depends on this call alone: with a layout chosen by the first call, the last bits of an image would depend on the
    calls before it.
    """
    return (min(x.shape[0], MANY), *x.shape[1:])


def _pack_kernel(
    weight: Tensor, padding: list[int], stride: list[int], dilation: list[int], groups: int, shape: Sequence[int]
) -> Tensor:
    return torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, list(shape))


def _pack_matrix(weight: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, math.prod(shape[:-1]))


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    residual: Tensor | None,
    reuse: bool = False,
) -> Tensor:
    call = torch.ops.mkldnn._convolution_pointwise
    if residual is None:
        return call(x, weight, bias, padding, stride, dilation, groups, "none", [], "")
    if reuse:
        sums = torch.ops.mkldnn._convolution_pointwise_
        return sums.binary(residual, x, weight, bias, padding, stride, dilation, groups, "add", 1.0, None, [], None)
    return call.binary(x, residual, weight, bias, padding, stride, dilation, groups, "add", 1.0, None, [], None)


def _project(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    if residual is None:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(x, residual.contiguous(), weight, bias, "add")
