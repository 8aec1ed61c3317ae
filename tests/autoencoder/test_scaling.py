"""Raw <-> model latents and the statistics behind them."""

import pytest
import torch

from sfumato.autoencoder.scaling import LatentStatistics, Scaling


def latents() -> torch.Tensor:
    noise = torch.randn(3, 2, 40, 50, generator=torch.Generator().manual_seed(0))
    return 100.0 + noise * torch.tensor([0.5, 3.0])[:, None, None]


def test_statistics_whiten_each_channel() -> None:
    raw = latents()
    statistics = LatentStatistics()
    for batch in raw.split([2, 1]):
        statistics.update(batch)
    flat = raw.transpose(0, 1).reshape(2, -1).double()
    assert statistics.count == flat.shape[1]
    assert torch.allclose(statistics.mean(), flat.mean(1))
    assert torch.allclose(statistics.std(), flat.std(1, correction=0))
    z = (flat - flat.mean(1, keepdim=True)) / flat.std(1, correction=0, keepdim=True)
    assert torch.allclose(statistics.kurtosis(), (z**4).mean(1) - 3, atol=1e-6)
    model = statistics.scaling().to_model(raw)
    assert model.mean((0, 2, 3)).abs().max() < 1e-3
    assert (model.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_kurtosis_separates_flat_from_gaussian() -> None:
    statistics = LatentStatistics()
    statistics.update(torch.rand(4, 1, 50, 60, generator=torch.Generator().manual_seed(0)))
    assert statistics.kurtosis().item() == pytest.approx(-1.2, abs=0.05)


def test_round_trip_and_the_single_factor() -> None:
    raw = latents()
    scaling = Scaling.from_factor(2, 0.18215)
    assert torch.allclose(scaling.to_model(raw), 0.18215 * raw)
    scaling = Scaling.from_statistics(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0]))
    assert torch.allclose(scaling.to_raw(scaling.to_model(raw)), raw)
    assert scaling.to_model(torch.tensor([1.5, 2.0]).reshape(1, 2, 1, 1)).flatten().tolist() == [1.0, 1.0]
    assert set(scaling.state_dict()) == {"shift", "scale"}


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="latent has 3 channels, the scaling 2"):
        Scaling.from_factor(2, 1.0).to_model(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="does a latent channel never vary"):
        Scaling.from_statistics(torch.zeros(2), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="no batch"):
        LatentStatistics().mean()
