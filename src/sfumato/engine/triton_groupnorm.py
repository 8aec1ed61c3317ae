"""Group normalisation of channels-last images on a GPU, in Triton: two passes over the image, forward and backward.

torch's own kernel supports only images in the other memory order, so it costs two transposes in addition. Requires
the triton package, which comes with torch's CUDA builds; import this file only where ImportError is handled.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from sfumato.engine.group_limits import WIDEST_GROUP

ROWS = 32
"""Positions per step of a program."""
WIDTH = 64
"""Channels per program."""
PARTS = 32
"""Largest number of parts of a sample, each summed by a separate program."""


def group_norm(
    x: Tensor, groups: int, gain: Tensor, bias: Tensor, add: Tensor | None, eps: float, silu: bool
) -> Tensor:
    """silu(norm(x + add) * gain + bias) with float32 inside, of x's type and memory order; differentiable in all.

    x (B, C, H, W), channels-last; gain, bias (C,) or (B, C); add (B, C); all contiguous, on one device.
    """
    if torch.is_grad_enabled():
        result: Tensor = _GroupNorm.apply(x, gain, bias, add, groups, eps, silu)
        return result
    return _forward(x, groups, gain, bias, add, eps, silu)[0]


@dataclass(frozen=True)
class _Grid:
    """The division of an image: `parts` of `chunk` positions each, `blocks` of channels."""

    n: int
    chunk: int
    parts: int
    blocks: int

    @classmethod
    def of(cls, x: Tensor) -> "_Grid":
        _, C, H, W = x.shape
        chunk = max(ROWS, triton.cdiv(triton.cdiv(H * W, PARTS), ROWS) * ROWS)
        return cls(H * W, chunk, triton.cdiv(H * W, chunk), triton.cdiv(C, WIDTH))


def _forward(
    x: Tensor, groups: int, gain: Tensor, bias: Tensor, add: Tensor | None, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The result; per channel (4, B, C) factor, offset, centre and the difference of its mean from the group's; the
    groups' 1 / standard deviation (B, groups)."""
    B, C, _, _ = x.shape
    grid, each = _Grid.of(x), C // groups
    sums = torch.empty(B, grid.parts, 2, C, dtype=torch.float32, device=x.device)
    channels = torch.empty(4, B, C, dtype=torch.float32, device=x.device)
    rstd = torch.empty(B, groups, dtype=torch.float32, device=x.device)
    y = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _sums[(B, grid.parts, grid.blocks)](x, sums, grid.n, C, grid.chunk, grid.parts, ROWS, WIDTH)
        _coefficients[(B, groups)](
            *(x, sums, gain, bias, gain if add is None else add, channels, rstd),
            *(B, grid.n, C, each, grid.parts, eps),
            *(gain.dim() == 2, bias.dim() == 2, add is not None, PARTS, WIDEST_GROUP),
        )
        _apply[(B, triton.cdiv(grid.n, ROWS), grid.blocks)](x, y, channels, B, grid.n, C, silu, ROWS, WIDTH)
    return y, channels, rstd


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, add: Tensor | None, groups: int, eps: float, silu: bool
    ) -> Tensor:
        y, channels, rstd = _forward(x, groups, gain, bias, add, eps, silu)
        ctx.save_for_backward(x, gain, channels, rstd)
        ctx.bias, ctx.add = (bias.dim(), bias.dtype), None if add is None else add.dtype
        ctx.silu = silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, channels, rstd = ctx.saved_tensors
        B, C, _, _ = x.shape
        groups = rstd.shape[1]
        grid, dy = _Grid.of(x), dy.contiguous(memory_format=torch.channels_last)
        sums = torch.empty(B, grid.parts, 2, C, dtype=torch.float32, device=x.device)
        slopes = torch.empty(2, B, C, dtype=torch.float32, device=x.device)
        gradients = torch.empty(3, B, C, dtype=torch.float32, device=x.device)
        dx = torch.empty_like(x)
        with torch.cuda.device_of(x):
            _back_sums[(B, grid.parts, grid.blocks)](
                *(x, dy, sums, channels, B, grid.n, C, grid.chunk, grid.parts, ctx.silu, ROWS, WIDTH)
            )
            _back_coefficients[(B, groups)](
                *(sums, gain, channels, rstd, slopes, gradients, B, grid.n, C, C // groups, grid.parts),
                *(gain.dim() == 2, PARTS, WIDEST_GROUP),
            )
            _back_apply[(B, triton.cdiv(grid.n, ROWS), grid.blocks)](
                *(x, dy, dx, channels, slopes, B, grid.n, C, ctx.silu, ROWS, WIDTH)
            )
        dgain, dbias, dadd = gradients.unbind()
        dgain = dgain if gain.dim() == 2 else dgain.sum(0)
        dbias = dbias if ctx.bias[0] == 2 else dbias.sum(0)
        return (
            *(dx, dgain.to(gain.dtype), dbias.to(ctx.bias[1])),
            *(None if ctx.add is None else dadd.to(ctx.add), None, None, None),
        )


@triton.jit(do_not_specialize=["n", "chunk", "parts"])
def _sums(x, sums, n, C, chunk, parts, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Per channel sum and sum of squares of a part's rows minus the sample's first row, so that no digits cancel."""
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


@triton.jit(do_not_specialize=["B", "n", "each", "parts"])
def _coefficients(  # type: ignore[no-untyped-def]
    x,
    sums,
    gain,
    bias,
    add,
    channels,
    rstd,
    B,
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
    """Coefficients of a group from the parts' sums (Chan et al. 1979): y = factor · x + offset per channel; the group's
    standard deviation divides x minus its centre."""
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
    r = 1 / tl.sqrt(variance + eps)
    out = channels + b * C + c
    tl.store(out, w * r, mask=inside)
    tl.store(out + B * C, shift + (added - mean) * w * r, mask=inside)
    tl.store(out + 2 * B * C, mean - added, mask=inside)
    tl.store(out + 3 * B * C, apart, mask=inside)
    tl.store(rstd + b * tl.num_programs(1) + group, r)


@triton.jit(do_not_specialize=["B", "n"])
def _apply(x, y, channels, B, n, C, SILU: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    b = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    inside = c < C
    there = (row[:, None] < n) & inside[None, :]
    k = tl.load(channels + b * C + c, mask=inside, other=0.0)
    o = tl.load(channels + (B + b) * C + c, mask=inside, other=0.0)
    place = b.to(tl.int64) * n * C + row[:, None] * C + c[None, :]
    value = tl.load(x + place, mask=there, other=0.0).to(tl.float32) * k[None, :] + o[None, :]
    if SILU:
        value = value * tl.sigmoid(value)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["B", "n", "chunk", "parts"])
def _back_sums(  # type: ignore[no-untyped-def]
    x,
    dy,
    sums,
    channels,
    B,
    n,
    C,
    chunk,
    parts,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Per channel the sums of dz and of dz · (x - centre) over a part's rows; z is the input of SiLU."""
    b, part = tl.program_id(0), tl.program_id(1)
    c = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    inside = c < C
    sample = b.to(tl.int64) * n * C
    k = tl.load(channels + b * C + c, mask=inside, other=0.0)
    o = tl.load(channels + (B + b) * C + c, mask=inside, other=0.0)
    centre = tl.load(channels + (2 * B + b) * C + c, mask=inside, other=0.0)
    first = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    second = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    stop = tl.minimum(part * chunk + chunk, n)
    for start in range(part * chunk, stop, ROWS):
        row = start + tl.arange(0, ROWS)
        there = (row[:, None] < stop) & inside[None, :]
        place = sample + row[:, None] * C + c[None, :]
        value = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
        dz = tl.load(dy + place, mask=there, other=0.0).to(tl.float32)
        if SILU:
            z = value * k[None, :] + o[None, :]
            gate = tl.sigmoid(z)
            dz = dz * gate * (1 + z * (1 - gate))
        first += dz
        second += dz * (value - centre[None, :])
    out = sums + (b * parts + part) * 2 * C + c
    tl.store(out, tl.sum(first, 0), mask=inside)
    tl.store(out + C, tl.sum(second, 0), mask=inside)


@triton.jit(do_not_specialize=["B", "n", "each", "parts"])
def _back_coefficients(  # type: ignore[no-untyped-def]
    sums,
    gain,
    channels,
    rstd,
    slopes,
    gradients,
    B,
    n,
    C,
    each,
    parts,
    GAINS: tl.constexpr,
    PARTS: tl.constexpr,
    WIDEST: tl.constexpr,
):
    """Coefficients of a group: dx = factor · dz + slope · (x - centre) + level per channel; gradients of gain, bias and
    add."""
    b, group = tl.program_id(0), tl.program_id(1)
    i, part = tl.arange(0, WIDEST), tl.arange(0, PARTS)
    inside = i < each
    c = group * each + i
    there = (part[:, None] < parts) & inside[None, :]
    place = sums + (b * parts + part[:, None]) * 2 * C + c[None, :]
    r = tl.load(rstd + b * tl.num_programs(1) + group)
    first = tl.sum(tl.load(place, mask=there, other=0.0), 0)
    second = tl.sum(tl.load(place + C, mask=there, other=0.0), 0) * r
    w = tl.load(gain + (b * C + c if GAINS else c), mask=inside, other=0.0).to(tl.float32)
    slope = -r * r * tl.sum(w * second, 0) / (n * each)
    level = -r * tl.sum(w * first, 0) / (n * each)
    k = tl.load(channels + b * C + c, mask=inside, other=0.0)
    apart = tl.load(channels + (3 * B + b) * C + c, mask=inside, other=0.0)
    nothing = tl.zeros([WIDEST], dtype=tl.float32)
    tl.store(slopes + b * C + c, nothing + slope, mask=inside)
    tl.store(slopes + (B + b) * C + c, nothing + level, mask=inside)
    tl.store(gradients + b * C + c, second, mask=inside)
    tl.store(gradients + (B + b) * C + c, first, mask=inside)
    tl.store(gradients + (2 * B + b) * C + c, k * first + n * (slope * apart + level), mask=inside)


@triton.jit(do_not_specialize=["B", "n"])
def _back_apply(  # type: ignore[no-untyped-def]
    x, dy, dx, channels, slopes, B, n, C, SILU: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    b = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    inside = c < C
    there = (row[:, None] < n) & inside[None, :]
    k = tl.load(channels + b * C + c, mask=inside, other=0.0)
    o = tl.load(channels + (B + b) * C + c, mask=inside, other=0.0)
    centre = tl.load(channels + (2 * B + b) * C + c, mask=inside, other=0.0)
    slope = tl.load(slopes + b * C + c, mask=inside, other=0.0)
    level = tl.load(slopes + (B + b) * C + c, mask=inside, other=0.0)
    place = b.to(tl.int64) * n * C + row[:, None] * C + c[None, :]
    value = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
    dz = tl.load(dy + place, mask=there, other=0.0).to(tl.float32)
    if SILU:
        z = value * k[None, :] + o[None, :]
        gate = tl.sigmoid(z)
        dz = dz * gate * (1 + z * (1 - gate))
    gradient = k[None, :] * dz + slope[None, :] * (value - centre[None, :]) + level[None, :]
    tl.store(dx + place, gradient.to(dx.dtype.element_ty), mask=there)
