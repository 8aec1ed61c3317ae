"""Fidelity of a reconstructed image to its original: PSNR and SSIM per image, torch only."""

import torch
import torch.nn.functional as F
from torch import Tensor


def psnr(image: Tensor, reference: Tensor, data_range: float = 2.0) -> Tensor:
    """10 log10(range² / mean squared error) in decibels.

    Args:
        image, reference: (B, C, H, W).
        data_range: largest minus smallest value; 2 for images in [-1, 1]. Values beyond the range are not clipped here.

    Returns:
        (B,) float64; inf if the images are equal.

    Raises:
        ValueError: if the shapes differ or data_range is not positive.
    """
    _check(image, reference, data_range)
    error = (image.double() - reference.double()).square().mean(dim=(1, 2, 3))
    return 10.0 * torch.log10(data_range**2 / error)


def ssim(image: Tensor, reference: Tensor, data_range: float = 2.0, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity with a Gaussian window (Wang et al. 2004, eq. 13), mean over channels and positions.

    Only positions with the whole window inside the image count, and moments are the window's (no sample correction), as
    the authors do. K1 = 0.01, K2 = 0.03.

    Args:
        image, reference: (B, C, H, W); no side shorter than the window.
        data_range: largest minus smallest value; 2 for images in [-1, 1].
        window: side of the window, odd.
        sigma: its standard deviation, in pixels.

    Returns:
        (B,) float64, 1 if the images are equal.

    Raises:
        ValueError: if the shapes differ, data_range is not positive, or the image is smaller than the window.
    """
    luminance, contrast = _ssim_terms(image, reference, data_range, window, sigma)
    return (luminance * contrast).mean(dim=(1, 2, 3))


MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales (Wang et al. 2003)."""


def ms_ssim(
    image: Tensor,
    reference: Tensor,
    data_range: float = 2.0,
    window: int = 11,
    sigma: float = 1.5,
    weights: tuple[float, ...] = MS_SSIM_WEIGHTS,
) -> Tensor:
    """Multi-scale structural similarity (Wang et al. 2003, eq. 7): contrast at every scale, luminance at the coarsest.

    Each scale halves the image by 2×2 means. Per channel, then the mean over channels; a negative contrast counts as 0.

    Args and errors as ssim's; with five scales no side may be shorter than 16 times the window.

    Returns:
        (B,) float64.
    """
    x, y = image.double(), reference.double()
    result = torch.ones(x.shape[:2], dtype=torch.float64, device=x.device)
    for scale, weight in enumerate(weights):
        if scale > 0:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        luminance, contrast = _ssim_terms(x, y, data_range, window, sigma)
        term = luminance * contrast if scale == len(weights) - 1 else contrast
        result = result * term.mean(dim=(2, 3)).clamp_min(0.0) ** weight
    return result.mean(dim=1)


def _ssim_terms(
    image: Tensor, reference: Tensor, data_range: float, window: int, sigma: float
) -> tuple[Tensor, Tensor]:
    """The luminance and the contrast-structure map, (B, C, H − window + 1, W − window + 1) each."""
    _check(image, reference, data_range)
    B, C, H, W = image.shape
    if window % 2 == 0 or min(H, W) < window:
        raise ValueError(f"window {window} must be odd and fit the image, which is {H}x{W} at this scale")
    x, y = image.double(), reference.double()
    offsets = torch.arange(window, dtype=torch.float64, device=x.device) - window // 2
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()

    def blur(a: Tensor) -> Tensor:
        a = a.reshape(B * C, 1, H, W)
        a = F.conv2d(F.conv2d(a, kernel[None, None, :, None]), kernel[None, None, None, :])
        return a.reshape(B, C, *a.shape[-2:])

    mean_x, mean_y = blur(x), blur(y)
    variance_x = blur(x * x) - mean_x**2
    variance_y = blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    contrast = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return luminance, contrast


def _check(image: Tensor, reference: Tensor, data_range: float) -> None:
    if image.shape != reference.shape or image.dim() != 4:
        raise ValueError(
            f"image {tuple(image.shape)} and reference {tuple(reference.shape)} must be equal (B, C, H, W)"
        )
    if data_range <= 0:
        raise ValueError(f"data_range {data_range} must be positive")
