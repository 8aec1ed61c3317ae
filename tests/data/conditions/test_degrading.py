"""Small images: exact where nothing is random, statistics against recorded outputs of the original where it is."""

import numpy as np
import pytest
import torch
from PIL import Image

from parity import golden, needs_parity
from sfumato.conditioning.metadata import DegradationName
from sfumato.data.conditions.config import LowResolutionConfig
from sfumato.data.conditions.degrade import degrade
from sfumato.data.conditions.latents import LowResolution
from sfumato.data.conditions.resize import blur, gaussian_kernel, resize
from sfumato.data.toyworld.dataset import ToyWorld
from sfumato.rng import numpy_generator

KINDS: tuple[DegradationName, ...] = ("bsr", "bsr-light")


def noise(height: int, width: int) -> np.ndarray:
    return numpy_generator(0, "test").integers(0, 256, (3, height, width), dtype=np.uint8)


def test_bicubic_is_pillow_s() -> None:
    image = noise(24, 32)
    expected = Image.fromarray(image.transpose(1, 2, 0)).resize((8, 6), Image.Resampling.BICUBIC)
    found = degrade(image, 4, "bicubic", numpy_generator(0))
    assert np.array_equal(found.transpose(1, 2, 0), np.asarray(expected))


@pytest.mark.parametrize("by", ["linear", "cubic"])
@pytest.mark.parametrize("size", [(5, 9), (20, 7), (33, 40)])
def test_interpolation_agrees_with_torch(by: str, size: tuple[int, int]) -> None:
    image = noise(12, 21).astype(np.float32) / 255
    mode = {"linear": "bilinear", "cubic": "bicubic"}[by]
    expected = torch.nn.functional.interpolate(torch.from_numpy(image)[None], size, mode=mode)[0]
    np.testing.assert_allclose(resize(image, size, by), expected.numpy(), atol=2e-6)  # type: ignore[arg-type]


def test_areas_are_means() -> None:
    image = noise(12, 20).astype(np.float32)
    expected = image.reshape(3, 4, 3, 5, 4).mean((2, 4))
    np.testing.assert_allclose(resize(image, (4, 5), "area"), expected, rtol=1e-5)
    np.testing.assert_allclose(resize(image, (5, 7), "area").mean(), image.mean(), rtol=1e-5)


@pytest.mark.parametrize("size", [4, 7])
def test_a_blur_is_the_convolution(size: int) -> None:
    image = noise(10, 15).astype(np.float32)
    kernel = gaussian_kernel(size, (1.3, 0.6), 0.7)
    low, high = size // 2, (size - 1) // 2
    padded = np.pad(image, ((0, 0), (low, high), (low, high)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))
    expected = (windows * kernel[::-1, ::-1]).sum((-1, -2))
    np.testing.assert_allclose(blur(image, kernel), expected, rtol=1e-4, atol=1e-3)


def test_a_kernel_has_the_stated_spread_and_direction() -> None:
    kernel = gaussian_kernel(41, (4.0, 1.5), 0.6).astype(np.float64)
    steps = np.arange(41) - 20.0
    xx, yy, xy = (
        (kernel * steps**2).sum(),
        (kernel * steps[:, None] ** 2).sum(),
        (kernel * np.outer(steps, steps)).sum(),
    )
    values, vectors = np.linalg.eigh([[xx, xy], [xy, yy]])
    np.testing.assert_allclose(np.sqrt(values), [1.5, 4.0], rtol=0.01)
    assert abs(vectors[:, 1] @ [np.cos(0.6), np.sin(0.6)]) > 0.999
    for narrow in (gaussian_kernel(8, (1e-3, 1e-3), 0.0), gaussian_kernel(9, (1e-3, 1e-3), 0.0)):
        assert np.isfinite(narrow).all()
        assert narrow.sum() == pytest.approx(1)


@pytest.mark.parametrize("by", KINDS)
@pytest.mark.parametrize("factor", [2, 4])
def test_chance_comes_from_the_generator_alone(by: DegradationName, factor: int) -> None:
    image = noise(32, 48)
    one, other, third = (degrade(image, factor, by, numpy_generator(seed, "degrade")) for seed in (1, 1, 2))
    assert one.shape == (3, 32 // factor, 48 // factor)
    assert one.dtype == np.uint8
    assert np.array_equal(one, other)
    assert not np.array_equal(one, third)


def test_a_size_that_the_factor_does_not_divide_is_named() -> None:
    with pytest.raises(ValueError, match="an image of 30x32 cannot shrink by 4"):
        degrade(noise(30, 32), 4, "bsr", numpy_generator(0))


@needs_parity
@pytest.mark.parametrize("by", KINDS)
def test_degradations_are_as_strong_as_the_original_s(by: DegradationName) -> None:
    """Its chance has other sources, so distributions are compared: distance from the clean image, roughness."""
    tensors = golden("degrade")
    image = tensors["in/image"].numpy().transpose(2, 0, 1)
    clean = resize(image.astype(np.float32) / 255, (32, 32), "area")
    theirs = [tensors[f"{by.replace('-', '_')}/{i}"].numpy().transpose(2, 0, 1) / 255 for i in range(8)]
    ours = [degrade(image, 4, by, numpy_generator(seed)) / 255 for seed in range(60)]

    def distance(small: np.ndarray) -> float:
        return float(np.sqrt(np.square(small - clean).mean()))

    def roughness(small: np.ndarray) -> float:
        return float(np.abs(np.diff(small, axis=-1)).mean())

    for measure in (distance, roughness):
        a, b = np.array([measure(s) for s in ours]), np.array([measure(s) for s in theirs])
        error = np.hypot(a.std() / len(a) ** 0.5, b.std() / len(b) ** 0.5)
        assert abs(a.mean() - b.mean()) < 3 * error, (measure.__name__, a.mean(), b.mean())
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=0.02)
    mild = [degrade(image, 4, "bsr-light", numpy_generator(seed)) / 255 for seed in range(60)]
    if by == "bsr":
        assert np.mean([distance(s) for s in ours]) > np.mean([distance(s) for s in mild])


def test_the_key_of_small_images_follows_images_and_settings() -> None:
    def key(seed: int = 0, factor: int = 4) -> str:
        return LowResolution(ToyWorld(32, seed, length=2), LowResolutionConfig(factor=factor), (8, 8)).fingerprint()

    assert key() == key()
    assert len({key(), key(seed=1), key(factor=2)}) == 3
