"""Weights stored in 8 or 16 bits, and expanded to float32 when they are read.

In 8 bits a matrix or a kernel w of R rows (output channels) is an int8 tensor q of its shape and one scale s for each
row: w ≈ s·q, where 127 stands for the largest magnitude of the row. This is the symmetric per-channel quantizer of
Krishnamoorthi 2018, arXiv:1806.08342, sections 2.2 and 3.1.1. Clipping the largest weights for a smaller step, where
that reduces the squared error, gained 0.01 dB on a trained model, and is left out.

The scales are bfloat16: their eight significant bits times the seven of q are exact in float32, so that expanded
weights are the same on every machine, and quantizing them again changes nothing. Everything else (norms, biases, small
or narrow tensors), and everything in 16 bits, is float16.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sfumato.errors import UserError

Bits = Literal[8, 16]
SCALES = ".scale"
"""A quantized tensor's scales have its name with this suffix; a parameter of that name cannot exist beside it."""
LEVELS = 127
FEWEST_NUMBERS, FEWEST_IN_ROW = 1024, 16
"""Of a tensor that is quantized: below, 8 bits with their scales and names save next to nothing."""


def check_bits(bits: Any, where: str) -> None:
    """Raises UserError unless weights can be stored in this many bits."""
    if type(bits) is not int or bits not in get_args(Bits):
        raise UserError(f"{where}: weights are stored in 8 or 16 bits, not {str(bits)[:60]!r}")


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The int8 tensor and the scales of a weight: no number is off by more than half a scale.

    Args:
        weight: (R, ...), floating and finite.

    Returns:
        q of the same shape, -127 .. 127, and s (R,) in bfloat16, at least 0.
    """
    rows = weight.detach().float().flatten(1)  # (R, K)
    scale = (rows.abs().amax(1) / LEVELS).to(torch.bfloat16)
    step = scale.float()[:, None]  # as it is stored, so that its own rounding is no error of the weights
    q = torch.where(step > 0, rows / step, 0.0).round_().clamp_(-LEVELS, LEVELS)
    return q.to(torch.int8).view(weight.shape), scale


def halved(tensor: Tensor) -> Tensor:
    """float16, unless that could not hold the tensor: numbers beyond its range, or none within its normal numbers."""
    limits = torch.finfo(torch.float16)
    if not _can_be_reduced(tensor) or tensor.numel() == 0:
        return tensor
    largest = float(tensor.detach().abs().amax())
    return tensor.half() if largest == 0 or limits.tiny <= largest <= limits.max else tensor


def reduced(tensors: Mapping[str, Tensor], bits: Bits) -> dict[str, Tensor]:
    """Named weights as they are stored in 8 or 16 bits: `expanded` reads them. Integers and float64 stay as they are.

    Raises UserError for another number of bits.
    """
    check_bits(bits, "bits")
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if bits == 8 and _is_quantized(tensor):
            stored[name], stored[name + SCALES] = quantized(tensor)
        else:
            stored[name] = halved(tensor.detach())
    return stored


def _can_be_reduced(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float32, torch.float16, torch.bfloat16)


def _is_quantized(tensor: Tensor) -> bool:
    """Whether a tensor is stored as int8: a matrix or a kernel that is large enough."""
    wide = tensor.dim() >= 2 and tensor.numel() >= FEWEST_NUMBERS and tensor[0].numel() >= FEWEST_IN_ROW
    return wide and _can_be_reduced(tensor)


def expanded(stored: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Tensors reduced by `reduced`, as float32 under their names.

    int8 tensors without scales, and other integers, stay as they are. Raises UserError for scales that do not belong to
    the rows of their tensor; `where` names the file.
    """
    tensors: dict[str, Tensor] = {}
    scales = {name + SCALES for name, tensor in stored.items() if tensor.dtype == torch.int8}
    for name, tensor in stored.items():
        scale = stored.get(name + SCALES) if tensor.dtype == torch.int8 else None
        if name in scales:
            continue
        if scale is not None:
            _check_scales(name, tensor, scale, where)
            column = scale.float().view(-1, *[1] * (tensor.dim() - 1))
            tensors[name] = tensor.float().mul_(column)
        else:
            tensors[name] = tensor.float() if _can_be_reduced(tensor) else tensor
    return tensors


def _check_scales(name: str, tensor: Tensor, scale: Tensor, where: str) -> None:
    rows = tensor.shape[0] if tensor.dim() else 0
    if not scale.is_floating_point() or scale.shape != (rows,):
        kind = str(scale.dtype).removeprefix("torch.")
        raise UserError(
            f"{where} is damaged: {name + SCALES!r} has {kind} numbers of shape {tuple(scale.shape)}, not one scale "
            f"for each of the {rows} rows of {name!r}"
        )


def relative_error(weight: Tensor, other: Tensor) -> float:
    """|w - w'| / |w|, Euclidean norms over all numbers of two tensors of one shape; 0 where both are zero."""
    difference = float((weight.double() - other.double()).norm())
    return 0.0 if difference == 0 else difference / max(float(weight.double().norm()), torch.finfo(torch.float64).tiny)
