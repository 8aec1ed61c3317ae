"""PSNR and SSIM against closed forms and a window-by-window implementation."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato.evaluation.image_quality import MS_SSIM_WEIGHTS, ms_ssim, psnr, ssim


def images(shape: tuple[int, ...] = (3, 2, 17, 23), seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator) * 2 - 1
    return x, (x + 0.2 * torch.randn(shape, generator=generator)).clamp(-1, 1)


def test_psnr_of_known_errors() -> None:
    reference = torch.zeros(3, 2, 5, 7)
    image = reference.clone()
    image[0] += 0.2
    image[1, :, :, :] += 0.02
    value = psnr(image, reference)
    assert value.shape == (3,)
    assert value[0].item() == pytest.approx(20.0)
    assert value[1].item() == pytest.approx(40.0)
    assert value[2].item() == math.inf


def test_psnr_depends_on_the_range_alone_in_decibels() -> None:
    x, y = images()
    assert torch.allclose(psnr(x, y, 2.0), psnr((x + 1) * 127.5, (y + 1) * 127.5, 255.0), atol=1e-4)


def window_by_window(x: np.ndarray, y: np.ndarray, data_range: float, size: int = 11, sigma: float = 1.5) -> float:
    """Wang et al. 2004, eq. 12-16, one window at a time, two-dimensional weights."""
    axis = np.arange(size) - size // 2
    w = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * sigma**2))
    w /= w.sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for c in range(x.shape[0]):
        for i in range(x.shape[1] - size + 1):
            for j in range(x.shape[2] - size + 1):
                a, b = x[c, i : i + size, j : j + size], y[c, i : i + size, j : j + size]
                ma, mb = (w * a).sum(), (w * b).sum()
                va, vb, cab = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
                values.append((2 * ma * mb + c1) * (2 * cab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(values))


def test_ssim_equals_the_definition() -> None:
    x, y = images()
    value = ssim(x, y)
    assert value.shape == (3,)
    for i in range(3):
        expected = window_by_window(x[i].double().numpy(), y[i].double().numpy(), 2.0)
        assert value[i].item() == pytest.approx(expected, abs=1e-9)


def test_ssim_of_constant_images_is_the_luminance_term() -> None:
    a, b, c1 = 0.5, -0.25, 0.02**2
    value = ssim(torch.full((2, 1, 12, 13), a), torch.full((2, 1, 12, 13), b))
    assert value[0].item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1))


def test_equal_images_and_range() -> None:
    x, y = images()
    assert torch.allclose(ssim(x, x), torch.ones(3, dtype=torch.float64))
    # The means enter the luminance term, so a shift changes SSIM: only a scaling of both leaves it as it is.
    assert torch.allclose(ssim(x, y, 2.0), ssim(x * 127.5, y * 127.5, 255.0), atol=1e-6)


def test_ms_ssim() -> None:
    x, y = images((2, 3, 176, 180))
    value = ms_ssim(x, y)
    assert value.shape == (2,)
    assert torch.allclose(ms_ssim(x, x), torch.ones(2, dtype=torch.float64))
    assert (value < 1).all()
    assert torch.allclose(ms_ssim(x, y, weights=(1.0,)), ssim(x, y))
    assert sum(MS_SSIM_WEIGHTS) == pytest.approx(1.0, abs=1e-3)


def test_wrong_arguments_are_named() -> None:
    x, y = images()
    with pytest.raises(ValueError, match=r"image \(3, 2, 17, 23\) and reference \(1, 2, 17, 23\)"):
        psnr(x, y[:1])
    with pytest.raises(ValueError, match="window 11 must be odd and fit the image, which is 10x23"):
        ssim(x[:, :, :10], y[:, :, :10])
    with pytest.raises(ValueError, match="data_range 0"):
        ssim(x, y, 0)
