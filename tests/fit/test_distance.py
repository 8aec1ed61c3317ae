"""The kernel distance on the page of a fit."""

import pytest
import torch
from torch import Tensor

from sfumato.fit import distance
from sfumato.fit.distance import LEAST, kernel_score


def noise(count: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 0.3 + shift


@pytest.fixture(autouse=True)
def _features_are_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distance, "load_network", lambda name: object())
    monkeypatch.setattr(distance, "pooled", lambda network, batches: torch.cat([b.flatten(1) for b in batches]))


def test_samples_like_the_images_are_as_near_as_training_images() -> None:
    real, training = noise(60, 0), noise(40, 1)
    alike, far = kernel_score(noise(50, 2), real, training), kernel_score(noise(50, 2, 1.0), real, training)
    assert alike is not None
    assert far is not None
    assert abs(alike.value) < 0.05
    assert abs(alike.training) < 0.05
    assert far.value > 0.5
    assert (far.samples, far.real, far.training) == (50, 60, alike.training)


def test_few_images_have_no_distance() -> None:
    assert kernel_score(noise(50, 0), noise(LEAST - 1, 1), noise(50, 2)) is None
