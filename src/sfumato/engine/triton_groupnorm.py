"""Group normalisation of channels-last pictures on a GPU, in Triton: two passes over the picture, without gradients.

torch's own kernel takes pictures in the other memory order only, so it costs two transposes beside its passes. Needs
the triton package, which comes with torch's CUDA builds; import this file only where that may fail.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sfumato.engine.groupnorm import WIDEST_GROUP

ROWS = 32
"""Positions that a program takes at once."""
WIDTH = 64
"""Channels that a program takes."""
PARTS = 32
"""Of a sample at most, each summed by a program of its own."""


def group_norm(
    x: Tensor, groups: int, gain: Tensor, bias: Tensor, add: Tensor | None, eps: float, silu: bool
) -> Tensor:
    """silu(norm(x + add) * gain + bias) with float32 inside, of x's type and memory order.

    x (B, C, H, W), channels-last; gain, bias (C,) or (B, C); add (B, C); all contiguous, on one device.
    """
    B, C, H, W = x.shape
    n, each = H * W, C // groups
    chunk = max(ROWS, triton.cdiv(triton.cdiv(n, PARTS), ROWS) * ROWS)
    parts, blocks = triton.cdiv(n, chunk), triton.cdiv(C, WIDTH)
    sums = torch.empty(B, parts, 2, C, dtype=torch.float32, device=x.device)
    factor, offset = torch.empty(2, B, C, dtype=torch.float32, device=x.device).unbind()
    y = torch.empty_like(x)
    given = gain if add is None else add
    with torch.cuda.device_of(x):
        _sums[(B, parts, blocks)](x, sums, n, C, chunk, parts, ROWS, WIDTH)
        _coefficients[(B, groups)](
            *(x, sums, gain, bias, given, factor, offset, n, C, each, parts, eps),
            *(gain.dim() == 2, bias.dim() == 2, add is not None, PARTS, WIDEST_GROUP),
        )
        _apply[(B, triton.cdiv(n, ROWS), blocks)](x, y, factor, offset, n, C, silu, ROWS, WIDTH)
    return y


@triton.jit(do_not_specialize=["n", "chunk", "parts"])
def _sums(x, sums, n, C, chunk, parts, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of a part's rows: per channel sum and sum of squares, less the sample's first row, so that no digits cancel."""
    b, part = tl.program_id(0), tl.program_id(1)
    c = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    inside = c < C
    sample = x + b.to(tl.int64) * n * C
    level = tl.load(sample + c, mask=inside, other=0.0).to(tl.float32)
    first = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    second = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    stop = tl.minimum(part * chunk + chunk, n)
    for start in range(part * chunk, stop, ROWS):
        row = start + tl.arange(0, ROWS)
        there = (row[:, None] < stop) & inside[None, :]
        value = tl.load(sample + row[:, None] * C + c[None, :], mask=there, other=0.0).to(tl.float32)
        value = tl.where(there, value - level[None, :], 0.0)
        first += value
        second += value * value
    out = sums + (b * parts + part) * 2 * C + c
    tl.store(out, tl.sum(first, 0), mask=inside)
    tl.store(out + C, tl.sum(second, 0), mask=inside)


@triton.jit(do_not_specialize=["n", "each", "parts"])
def _coefficients(  # type: ignore[no-untyped-def]
    x,
    sums,
    gain,
    bias,
    add,
    factor,
    offset,
    n,
    C,
    each,
    parts,
    eps,
    GAINS: tl.constexpr,
    BIASES: tl.constexpr,
    ADDS: tl.constexpr,
    PARTS: tl.constexpr,
    WIDEST: tl.constexpr,
):
    """Of a group: y = factor · x + offset per channel, from the parts' sums (Chan et al. 1979)."""
    b, group = tl.program_id(0), tl.program_id(1)
    i, part = tl.arange(0, WIDEST), tl.arange(0, PARTS)
    inside = i < each
    c = group * each + i
    there = (part[:, None] < parts) & inside[None, :]
    place = sums + (b * parts + part[:, None]) * 2 * C + c[None, :]
    first = tl.sum(tl.load(place, mask=there, other=0.0), 0)
    second = tl.sum(tl.load(place + C, mask=there, other=0.0), 0)
    added = tl.zeros([WIDEST], dtype=tl.float32)
    if ADDS:
        added = tl.load(add + b * C + c, mask=inside, other=0.0).to(tl.float32)
    means = tl.load(x + b.to(tl.int64) * n * C + c, mask=inside, other=0.0).to(tl.float32) + first / n + added
    mean = tl.sum(tl.where(inside, means, 0.0), 0) / each
    apart = tl.where(inside, means - mean, 0.0)
    variance = tl.sum(second - first * first / n + n * apart * apart, 0) / (n * each)
    w = tl.load(gain + (b * C + c if GAINS else c), mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + (b * C + c if BIASES else c), mask=inside, other=0.0).to(tl.float32)
    k = w / tl.sqrt(variance + eps)
    tl.store(factor + b * C + c, k, mask=inside)
    tl.store(offset + b * C + c, shift + (added - mean) * k, mask=inside)


@triton.jit(do_not_specialize=["n"])
def _apply(x, y, factor, offset, n, C, SILU: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    b = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    inside = c < C
    there = (row[:, None] < n) & inside[None, :]
    k = tl.load(factor + b * C + c, mask=inside, other=0.0)
    o = tl.load(offset + b * C + c, mask=inside, other=0.0)
    place = b.to(tl.int64) * n * C + row[:, None] * C + c[None, :]
    value = tl.load(x + place, mask=there, other=0.0).to(tl.float32) * k[None, :] + o[None, :]
    if SILU:
        value = value * tl.sigmoid(value)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=there)
