"""Resizing and filtering of float images (3, H, W) with numpy alone, quick on small ones."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Interpolation = Literal["linear", "cubic", "area"]


def resize(image: Floats, size: tuple[int, int], by: Interpolation) -> Floats:
    """(3, H, W) -> (3, *size) by interpolation between neighbours, without a filter against aliasing, or by areas."""
    for axis, length in ((1, size[0]), (2, size[1])):
        if image.shape[axis] != length:
            image = _by_area(image, length, axis) if by == "area" else _by_taps(image, length, axis, by)
    return image


def _by_taps(image: Floats, length: int, axis: int, by: Interpolation) -> Floats:
    n = image.shape[axis]
    place = (np.arange(length) + 0.5) * (n / length) - 0.5
    base = np.floor(place).astype(np.intp)
    f = (place - base).astype(np.float32)
    taps: dict[int, Floats] = {0: 1 - f, 1: f}
    if by == "cubic":  # Keys 1981, with a = -0.75
        a = np.float32(-0.75)
        g = 1 - f
        taps = {-1: _outer(1 + f, a), 0: _inner(f, a), 1: _inner(g, a), 2: _outer(1 + g, a)}
    shape = [1, 1, 1]
    shape[axis] = length
    parts = [
        image.take((base + offset).clip(0, n - 1), axis) * weight.reshape(shape) for offset, weight in taps.items()
    ]
    total: Floats = np.sum(parts, 0, dtype=np.float32)
    return total


def _inner(x: Floats, a: np.float32) -> Floats:
    return ((a + 2) * x - (a + 3)) * x * x + 1


def _outer(x: Floats, a: np.float32) -> Floats:
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a


def _by_area(image: Floats, length: int, axis: int) -> Floats:
    """Means over intervals of equal length, by differences of the running sum."""
    n = image.shape[axis]
    total = np.cumsum(image, axis, dtype=np.float64)
    total = np.concatenate([np.zeros_like(total.take([0], axis)), total], axis)
    edges = np.arange(length + 1) * (n / length)
    low = np.floor(edges).astype(np.intp).clip(max=n - 1)
    shape = [1, 1, 1]
    shape[axis] = length + 1
    f = (edges - low).reshape(shape)
    at = total.take(low, axis) * (1 - f) + total.take(low + 1, axis) * f
    mean: Floats = (np.diff(at, axis=axis) * (length / n)).astype(np.float32)
    return mean


def gaussian_kernel(size: int, deviations: tuple[float, float], angle: float) -> Floats:
    """(size, size), sum 1: standard deviations along and across the direction `angle` (radians, from the x axis)."""
    steps = np.arange(size, dtype=np.float32) - (size - 1) / 2
    along = steps[None] * np.cos(angle) + steps[:, None] * np.sin(angle)
    across = steps[:, None] * np.cos(angle) - steps[None] * np.sin(angle)
    exponent = -0.5 * ((along / deviations[0]) ** 2 + (across / deviations[1]) ** 2)
    kernel = np.exp(exponent - exponent.max())  # of an even size no point is the centre: a narrow one would vanish
    return (kernel / kernel.sum()).astype(np.float32)


def blur(image: Floats, kernel: Floats) -> Floats:
    """(3, H, W) convolved with a kernel (k, k), the image mirrored at its border; by Fourier transforms."""
    _, H, W = image.shape
    k = kernel.shape[0]
    low, high = k // 2, (k - 1) // 2  # an even kernel's centre is between two pixels, here at the second
    padded = np.pad(image, ((0, 0), (low, high), (low, high)), mode="symmetric" if min(H, W) <= low else "reflect")
    size = (_smooth_length(padded.shape[1]), _smooth_length(padded.shape[2]))
    product = np.fft.rfft2(padded, size) * np.fft.rfft2(kernel, size)
    whole = np.fft.irfft2(product, size)
    # a circular convolution: its first k - 1 rows and columns are wrapped around
    return whole[:, k - 1 : k - 1 + H, k - 1 : k - 1 + W].astype(np.float32)


def _smooth_length(n: int) -> int:
    """The next length without prime factors above 5: quick to transform."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
