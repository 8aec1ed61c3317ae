"""Precision, recall, density, coverage, neighbours and copies against brute force."""

import pytest
import torch
from torch import Tensor

from sfumato.evaluation import precision_recall as module
from sfumato.evaluation.memorisation import neighbours
from sfumato.evaluation.precision_recall import precision_recall


def features(n: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)) + shift


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).square().sum().sqrt())


def radius(rows: Tensor, i: int, k: int) -> float:
    return sorted(distance(rows[i], rows[j]) for j in range(len(rows)) if j != i)[k - 1]


def test_all_four_are_the_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 4)
    real, fake, k, m = features(13, 0), features(11, 1, 0.8), 3, 4
    real_k, real_m = ([radius(real, i, n) for i in range(13)] for n in (k, m))
    fake_k = [radius(fake, i, k) for i in range(11)]
    d = [[distance(f, r) for r in real] for f in fake]
    found = precision_recall(real, fake, k, m)
    assert found.precision == pytest.approx(sum(any(d[i][j] <= real_k[j] for j in range(13)) for i in range(11)) / 11)
    assert found.recall == pytest.approx(sum(any(d[i][j] <= fake_k[i] for i in range(11)) for j in range(13)) / 13)
    within = sum(d[i][j] <= real_m[j] for i in range(11) for j in range(13))
    assert found.density == pytest.approx(within / (m * 11))
    assert found.coverage == pytest.approx(sum(any(d[i][j] <= real_m[j] for i in range(11)) for j in range(13)) / 13)
    assert 0 < found.precision < 1
    assert 0 < found.recall < 1


def test_equal_and_distant_sets_are_the_extremes() -> None:
    x = features(20, 2)
    same = precision_recall(x, x.clone())
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    far = precision_recall(x, x + 1000)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="5 neighbours need 6 rows"):
        precision_recall(features(5, 0), features(9, 0))


def test_neighbours_and_copies() -> None:
    training = torch.tensor([[0.0, 0, 0], [1, 0, 0], [5, 0, 0], [5, 0, 0]])
    samples = torch.tensor([[0.1, 0, 0], [-3.0, 0, 0], [5.0, 0, 0], [5.0, 1, 0]])
    found = neighbours(samples, training, 2)
    assert found.rows[:2].tolist() == [[0, 1], [0, 1]]
    assert found.distances[0].tolist() == pytest.approx([0.1, 0.9])
    assert found.ratio.tolist() == pytest.approx([0.1, 3.0, 0.0, float("inf")])
    assert found.authenticity == 0.5
    assert found.copies() == 0.5
    with pytest.raises(ValueError, match="5 training rows"):
        neighbours(samples, training, 5)


def test_fresh_samples_are_authentic_about_half_of_the_time() -> None:
    found = neighbours(features(500, 3), features(500, 4))
    assert 0.4 < found.authenticity < 0.7
    assert neighbours(features(500, 4) + 1e-4, features(500, 4)).authenticity < 0.02
