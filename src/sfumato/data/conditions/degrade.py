"""From an image to a low-resolution one: bicubic, or with realistic degradations (BSR, Zhang et al. 2021).

BSR shuffles blurs, two ways of shrinking, noise and JPEG; "bsr" is the strong version, "bsr-light" the mild one with
which the paper's super-resolution model for real images was trained (appendix D.6). The resize to the final
size comes after the random resize, wherever the two are in the order. All randomness comes from one generator.
"""

import math
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from sfumato.conditioning.metadata import DegradationName
from sfumato.data.conditions.resize import Floats, Interpolation, blur, gaussian_kernel, resize
from sfumato.data.transforms import Pixels

_INTERPOLATIONS: tuple[Interpolation, ...] = ("linear", "cubic", "area")
_PRE_SHRINKING = 0.25  # how often an image that shrinks by 4 is halved first
_JPEG = 0.9  # how often it is compressed in between; it always is at the end


@dataclass(frozen=True)
class _Strength:
    """`blurs` in number; `largest` half extents of anisotropic and isotropic kernels; widths are divided by `calm`."""

    blurs: int
    largest: tuple[int, int]
    doubled: bool  # kernels of twice the extent, so that their size is odd
    calm: float
    random_shrinking: float
    noise: tuple[int, int]
    quality: tuple[int, int]


_STRENGTHS = {
    "bsr": _Strength(2, (11, 11), True, 1.0, 0.75, (2, 25), (30, 95)),
    "bsr-light": _Strength(1, (11, 4), False, 4.0, 0.8, (1, 2), (80, 95)),
}


def degrade(image: Pixels, factor: int, by: DegradationName, rng: np.random.Generator) -> Pixels:
    """uint8 (3, H, W) -> uint8 (3, H / factor, W / factor); bicubic uses no randomness.

    Bicubic filters against aliasing. Raises ValueError if `factor` does not divide H and W.
    """
    _, H, W = image.shape
    if H % factor or W % factor:
        raise ValueError(f"an image of {H}x{W} cannot shrink by {factor}: take a multiple of it")
    small = (H // factor, W // factor)
    if by == "bicubic":
        return bicubic(image, small)
    return _bsr(image.astype(np.float32) / np.float32(255), small, factor, _STRENGTHS[by], rng)


def bicubic(image: Pixels, size: tuple[int, int]) -> Pixels:
    """uint8 (3, H, W) -> uint8 (3, *size), filtered against aliasing where it shrinks."""
    pil_image = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    resized = pil_image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def _bsr(image: Floats, small: tuple[int, int], factor: int, strength: _Strength, rng: np.random.Generator) -> Pixels:
    if factor == 4 and rng.random() < _PRE_SHRINKING:
        half = (image.shape[1] // 2, image.shape[2] // 2)
        image = resize(image, half, _interpolation(rng)).clip(0, 1)
        factor = 2
    steps = ["blur"] * strength.blurs + ["shrink", "fit", "noise", "jpeg"]
    steps = [steps[i] for i in rng.permutation(len(steps))]
    shrink, fit = steps.index("shrink"), steps.index("fit")
    if shrink > fit:
        steps[shrink], steps[fit] = "fit", "shrink"
    for step in steps:
        match step:
            case "blur":
                image = _random_blur(image, factor, strength, rng)
            case "shrink":
                image = _random_shrink(image, factor, strength, rng)
            case "fit":
                image = resize(image, small, _interpolation(rng)).clip(0, 1)
            case "noise":
                image = _noise(image, strength.noise, rng)
            case "jpeg" if rng.random() < _JPEG:
                image = _jpeg(image, strength.quality, rng)
            case _:
                pass
    image = _jpeg(image, strength.quality, rng)
    return np.rint(image * 255).astype(np.uint8)


def _interpolation(rng: np.random.Generator) -> Interpolation:
    return _INTERPOLATIONS[int(rng.integers(3))]


def _random_blur(image: Floats, factor: int, strength: _Strength, rng: np.random.Generator) -> Floats:
    """A Gaussian; in half of all cases an anisotropic one of any direction."""
    anisotropic = rng.random() < 0.5
    extent = int(rng.integers(2, strength.largest[0 if anisotropic else 1] + 1))
    size = (2 * extent if strength.doubled else extent) + 3
    if anisotropic:  # the widths are variances there
        variances = (4.0 + factor) / strength.calm * rng.random(2)
        deviations = (math.sqrt(variances[0]) + 1e-3, math.sqrt(variances[1]) + 1e-3)
        kernel = gaussian_kernel(size, deviations, rng.random() * math.pi)
    else:
        deviation = (2.0 + 0.2 * factor) / strength.calm * rng.random() + 1e-3
        kernel = gaussian_kernel(size, (deviation, deviation), 0.0)
    return blur(image, kernel)


def _random_shrink(image: Floats, factor: int, strength: _Strength, rng: np.random.Generator) -> Floats:
    """To any size down to half of the final one; else blurred, and every factor-th pixel taken."""
    _, H, W = image.shape
    if rng.random() < strength.random_shrinking:
        by = rng.uniform(1, 2 * factor)
        return resize(image, (max(1, int(H / by)), max(1, int(W / by))), _interpolation(rng)).clip(0, 1)
    deviation = rng.uniform(0.1, 0.6 * factor)
    blurred = blur(image, gaussian_kernel(25, (deviation, deviation), 0.0))
    # the cells' centres: half a pixel off for an even factor is left to the following steps
    start = (factor - 1) // 2
    return blurred[:, start::factor, start::factor]


def _noise(image: Floats, levels: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Gaussian noise, independent in each channel, equal in all, or correlated; levels are deviations out of 255."""
    _, H, W = image.shape
    level = float(rng.integers(levels[0], levels[1] + 1)) / 255
    kind = rng.random()
    if kind > 0.6:
        noise = level * rng.standard_normal(image.shape, np.float32)
    elif kind < 0.4:
        noise = level * rng.standard_normal((1, H, W), np.float32)
    else:
        top = levels[1] / 255
        rotation = np.linalg.qr(rng.random((3, 3)))[0]
        root = np.sqrt(rng.random(3))[:, None] * rotation  # of the covariance R' diag(d) R
        noise = top * np.einsum("ij,ihw->jhw", root.astype(np.float32), rng.standard_normal((3, H, W), np.float32))
    return (image + noise).clip(0, 1)


def _jpeg(image: Floats, quality: tuple[int, int], rng: np.random.Generator) -> Floats:
    pixels = np.rint(image.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    stream = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(
        stream, "JPEG", quality=int(rng.integers(quality[0], quality[1] + 1))
    )
    with Image.open(stream) as decoded:
        return np.asarray(decoded).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
