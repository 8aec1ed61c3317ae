"""The kernel distance of two sets of features: squared maximum mean discrepancy (KID, Bińkowski et al. 2018)."""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 2048


@dataclass(frozen=True)
class KernelDistance:
    """Mean over subsets of the unbiased estimate, and the standard deviation between subsets."""

    mean: float
    std: float
    subsets: int
    subset_size: int


def kernel_distance(
    x: Tensor, y: Tensor, generator: torch.Generator, subsets: int = 100, subset_size: int = 1000
) -> KernelDistance:
    """KID with the kernel (x·y / D + 1)³ (section 4), float64.

    Unbiased for any number of rows, so it can be used if there are too few for a Fréchet distance.

    Args:
        x, y: (N, D) and (M, D).
        generator: chooses the subsets' rows, without repetition within a subset; on the CPU.
        subsets: number of subsets.
        subset_size: rows of each; all rows of the smaller set if it has fewer.

    Raises:
        ValueError: for other shapes, fewer than two rows, or no subsets.
    """
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features {tuple(x.shape)} and {tuple(y.shape)} must be (N, D) and (M, D)")
    size = min(subset_size, len(x), len(y))
    if size < 2 or subsets < 1:
        raise ValueError(f"a kernel distance needs two rows of each and one subset at least: {size} rows, {subsets}")
    if size == len(x) == len(y):
        subsets = 1  # every subset would be the same
    values = torch.empty(subsets, dtype=torch.float64)
    for i in range(subsets):
        rows_x = torch.randperm(len(x), generator=generator)[:size]
        rows_y = torch.randperm(len(y), generator=generator)[:size]
        values[i] = squared_mmd(x[rows_x], y[rows_y])
    std = values.std(correction=0).item()
    return KernelDistance(values.mean().item(), std, subsets, size)


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate of the squared discrepancy of (N, D) and (M, D), eq. 4; may be slightly negative."""
    N, M = len(x), len(y)
    within = (_kernel_sum(x, x) - _diagonal_sum(x)) / (N * (N - 1))
    within += (_kernel_sum(y, y) - _diagonal_sum(y)) / (M * (M - 1))
    return within - 2 * _kernel_sum(x, y) / (N * M)


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    """The sum of the kernel over all pairs, in blocks."""
    total = 0.0
    columns = y.double().T
    for rows in x.double().split(BLOCK):
        total += (rows @ columns / x.shape[1] + 1).pow(3).sum().item()
    return total


def _diagonal_sum(x: Tensor) -> float:
    return (x.double().square().sum(dim=1) / x.shape[1] + 1).pow(3).sum().item()
