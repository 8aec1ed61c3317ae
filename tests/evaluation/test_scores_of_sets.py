"""Inception Score, FD∞ and intervals, classification accuracy, spectra: closed forms and direct definitions."""

import math

import pytest
import torch
from torch import Tensor

from sfumato.evaluation.classification import linear_accuracy
from sfumato.evaluation.extrapolation import SampledDistance, distance_interval, extrapolate, extrapolated_interval
from sfumato.evaluation.frechet import GaussianStatistics, frechet_distance
from sfumato.evaluation.inception_score import InceptionScore
from sfumato.evaluation.latents import dct2, halved, high_frequency_share, relative_error


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, d: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(n, d, generator=generator(seed)) * scale


# ---- Inception Score


def test_sure_and_varied_scores_the_number_of_classes_and_unsure_one() -> None:
    sure = InceptionScore(12, splits=2)
    sure.update(1000 * torch.eye(4).repeat(3, 1))
    found = sure.finish()
    assert found.mean == pytest.approx(4, rel=0.1)  # six rows of four classes a split are not quite even
    even = InceptionScore(8, splits=2)
    even.update(1000 * torch.eye(4).repeat(2, 1))
    assert even.finish().mean == pytest.approx(4)
    assert even.finish().std == pytest.approx(0)
    flat = InceptionScore(6, splits=1)
    flat.update(torch.zeros(6, 5))
    assert flat.finish().mean == pytest.approx(1)


def test_batches_do_not_matter_and_splits_are_in_order() -> None:
    logits = normal(23, 7, 0, 3.0)
    streamed = InceptionScore(23, splits=4)
    for part in logits.split(5):
        streamed.update(part)
    values = []
    for i in range(4):
        p = logits[23 * i // 4 : 23 * (i + 1) // 4].double().softmax(dim=1)
        marginal = p.mean(dim=0)
        values.append(math.exp(sum((row * (row / marginal).log()).sum().item() for row in p) / len(p)))
    found = streamed.finish()
    assert found.mean == pytest.approx(sum(values) / 4, rel=1e-9)
    assert found.std == pytest.approx(torch.tensor(values).std(correction=0).item(), rel=1e-4)
    with pytest.raises(ValueError, match="24 rows came, 23 were announced"):
        streamed.update(logits[:1])
    with pytest.raises(ValueError, match="0 rows came"):
        InceptionScore(3).finish()


# ---- FD∞


def test_a_part_s_distance_is_the_distance_of_its_statistics() -> None:
    reference = GaussianStatistics.of(normal(60, 6, 1) + 0.2)
    x = normal(40, 6, 2, 1.3)
    sampled = SampledDistance(x, reference)
    assert sampled() == pytest.approx(frechet_distance(GaussianStatistics.of(x), reference), rel=1e-7)
    rows = torch.tensor([3, 3, 7, 30])  # fewer than dimensions, one repeated
    expected = frechet_distance(GaussianStatistics.of(x[rows]), reference)
    assert sampled(rows) == pytest.approx(expected, rel=1e-6)


def test_extrapolation_takes_the_bias_away() -> None:
    d, shift = 20, 0.1
    reference = GaussianStatistics.of(normal(100_000, d, 3))
    sampled = SampledDistance(normal(400, d, 4) + shift, reference)
    truth = d * shift**2
    biased, better = sampled(), extrapolate(sampled, generator())
    assert biased > 2 * truth
    assert abs(better - truth) < 0.35 * (biased - truth)


def test_intervals_hold_their_value_and_narrow_with_n() -> None:
    reference = GaussianStatistics.of(normal(20_000, 8, 5))
    few, many = (SampledDistance(normal(n, 8, 6) + 0.3, reference) for n in (100, 1600))
    wide, narrow = (distance_interval(sampled, generator(1), 40) for sampled in (few, many))
    assert wide.low < wide.value < wide.high
    assert (narrow.high - narrow.low) < 0.5 * (wide.high - wide.low)
    infinite = extrapolated_interval(many, generator(2), 40)
    assert infinite.low < 8 * 0.3**2 < infinite.high
    with pytest.raises(ValueError, match="two points or more"):
        extrapolate(few, generator(), 1)


# ---- classification accuracy


def test_a_linear_rule_is_learned_and_its_opposite_is_wrong() -> None:
    x, test = normal(200, 5, 7), normal(100, 5, 8)
    rule, other = (x[:, 0] > 0).long(), (test[:, 0] > 0).long()
    assert linear_accuracy(x, rule, test, other, 2) > 0.93
    assert linear_accuracy(x, 1 - rule, test, other, 2) < 0.07
    with pytest.raises(ValueError, match="not below the number of classes, 1"):
        linear_accuracy(x, rule, test, other, 1)


# ---- latents


def test_the_cosine_transform_is_orthonormal_and_finds_a_cosine() -> None:
    x = normal(2 * 3 * 6, 10, 9).reshape(2, 3, 6, 10)
    torch.testing.assert_close(dct2(x).square().sum(), x.square().sum())
    i = (torch.arange(10) + 0.5) * math.pi / 10
    wave = torch.cos(3 * i)[None].expand(6, 10)[None, None]
    found = dct2(wave)[0, 0]
    assert found.abs().argmax() == 3
    assert (found.abs() > 1e-4).sum() == 1


def test_noise_has_the_share_of_the_area_and_smooth_images_little() -> None:
    noise = normal(8 * 3 * 32, 32, 10).reshape(8, 3, 32, 32)
    assert high_frequency_share(noise) == pytest.approx(0.75, abs=0.02)
    ramp = torch.linspace(-1, 1, 32)[None, None, None].expand(1, 1, 32, 32)
    assert high_frequency_share(ramp) < 0.01
    checker = (torch.arange(32)[:, None] + torch.arange(32)) % 2
    assert high_frequency_share(checker[None, None].float()) > 0.95


def test_relative_error_is_zero_to_one() -> None:
    x = normal(2 * 3 * 8, 8, 11).reshape(2, 3, 8, 8) + 5
    assert relative_error(x, x) == 0
    assert relative_error(x.mean(dim=(0, 2, 3), keepdim=True).expand_as(x), x) == pytest.approx(1)
    assert halved(x).shape == (2, 3, 4, 4)
