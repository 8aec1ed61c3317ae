"""Posterior and codebook against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from sfumato.autoencoder import bottleneck
from sfumato.autoencoder.bottleneck import (
    VectorQuantizer,
    bits_per_dimension,
    code_counts,
    codebook_usage,
    gaussian_kl,
    gaussian_moments,
    gaussian_sample,
    kmeans,
    nearest_codes,
    revive_dead_codes,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_kl_of_known_gaussians() -> None:
    # One latent number per channel and sample, B = 3: N(2, 1), N(0, 4), N(0, 1).
    mean = torch.tensor([2.0, 0.0, 0.0]).reshape(3, 1, 1, 1)
    log_variance = torch.tensor([0.0, math.log(4.0), 0.0]).reshape(3, 1, 1, 1)
    kl = gaussian_kl(torch.cat([mean, log_variance], 1))
    assert torch.allclose(kl, torch.tensor([2.0, 0.5 * (4 - 1 - math.log(4)), 0.0]))


def test_kl_equals_torch_distributions() -> None:
    moments = normal(3, 4, 5, 6)
    mean, log_variance = moments.chunk(2, 1)
    posterior = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    prior = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    expected = torch.distributions.kl_divergence(posterior, prior).sum((1, 2, 3))
    assert torch.allclose(gaussian_kl(moments), expected, rtol=1e-5)
    assert bits_per_dimension(moments).item() == pytest.approx(expected.mean().item() / (2 * 5 * 6) / math.log(2))


def test_log_variance_is_clamped_and_noise_scaled() -> None:
    parameters = torch.zeros(2, 2, 1, 3)
    parameters[:, 0] = 5.0
    parameters[0, 1], parameters[1, 1] = -100.0, 100.0
    moments = gaussian_moments(parameters)
    assert moments[0, 1].unique().tolist() == [-30.0]
    assert moments[1, 1].unique().tolist() == [20.0]
    noise = torch.ones(2, 1, 1, 3)
    assert torch.allclose(gaussian_sample(moments, noise)[:, 0, 0, 0], 5 + torch.exp(torch.tensor([-15.0, 10.0])))
    assert torch.equal(gaussian_sample(moments, None), parameters[:, :1])


@pytest.mark.parametrize("legacy", [True, False])
def test_vq_loss_and_its_gradients(legacy: bool) -> None:
    layer = VectorQuantizer(11, 3, beta=0.25, legacy=legacy)
    layer.embedding.weight.data = normal(11, 3, seed=1)
    h = normal(2, 3, 4, 5).requires_grad_()
    encoding = layer(h)
    assert encoding.indices is not None
    e = layer.embed(encoding.indices).detach()
    error = (e - h.detach()).square().mean()
    # Both terms have the same value; beta chooses whose gradient is quartered.
    assert encoding.regulariser.item() == pytest.approx(1.25 * error.item())
    to_latent, to_codes = torch.autograd.grad(encoding.regulariser, [h, layer.embedding.weight])
    commitment = 2 * (h.detach() - e) / h.numel()
    assert torch.allclose(to_latent, commitment * (1.0 if legacy else 0.25))
    pulled = torch.zeros(11, 3).index_add_(
        0, encoding.indices.flatten(), -commitment.permute(0, 2, 3, 1).reshape(-1, 3)
    )
    assert torch.allclose(to_codes, pulled * (0.25 if legacy else 1.0))


def test_vq_passes_the_gradient_straight_through() -> None:
    layer = VectorQuantizer(7, 3)
    layer.embedding.weight.data = normal(7, 3, seed=1)
    h = normal(2, 3, 4, 5).requires_grad_()
    weights = normal(2, 3, 4, 5, seed=2)
    for z in (layer(h).z, layer.quantise(h)):
        gradients = torch.autograd.grad((z * weights).sum(), [h, layer.embedding.weight], allow_unused=True)
        assert torch.equal(gradients[0], weights)
        assert gradients[1] is None or not gradients[1].any()


def test_vq_chooses_the_nearest_code() -> None:
    layer = VectorQuantizer(13, 3)
    layer.embedding.weight.data = normal(13, 3, seed=1)
    h = normal(2, 3, 4, 5)
    distances = (h[:, None] - layer.embedding.weight.detach()[None, :, :, None, None]).square().sum(2)  # (B, K, h, w)
    encoding = layer(h)
    assert encoding.indices is not None
    assert torch.equal(encoding.indices, distances.argmin(1))
    assert torch.allclose(layer.quantise(encoding.z), encoding.z)


def test_normalised_codes_are_compared_by_cosine() -> None:
    layer = VectorQuantizer(13, 3, normalise=True)
    layer.embedding.weight.data = normal(13, 3, seed=1)
    h = normal(2, 3, 4, 5)
    encoding = layer(h)
    cosine = torch.nn.functional.cosine_similarity(
        h[:, None], layer.embedding.weight.detach()[None, :, :, None, None], dim=2
    )
    assert encoding.indices is not None
    assert torch.equal(encoding.indices, cosine.argmax(1))
    assert torch.allclose(encoding.z.norm(dim=1), torch.ones(2, 4, 5))
    assert torch.allclose(encoding.moments.norm(dim=1), torch.ones(2, 4, 5))
    assert torch.equal(layer.search(encoding.moments), encoding.indices)


def test_the_search_in_slices_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    points, codes = normal(101, 3), normal(17, 3, seed=1)
    whole = nearest_codes(points, codes)
    monkeypatch.setattr(bottleneck, "_DISTANCES_AT_ONCE", 50)
    assert torch.equal(nearest_codes(points, codes), whole)


def test_the_search_is_exact_under_autocast() -> None:
    points = 100 + 0.1 * normal(64, 3)
    codes = points[:20].clone()
    exact = nearest_codes(points, codes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_codes(points, codes), exact)


def test_usage() -> None:
    indices = torch.tensor([[[0, 0], [3, 3]], [[0, 0], [3, 3]]])
    counts = code_counts(indices, 5)
    assert counts.tolist() == [4, 0, 0, 4, 0]
    usage = codebook_usage(counts)
    assert usage.used == pytest.approx(0.4)
    assert usage.perplexity == pytest.approx(2.0)
    with pytest.raises(ValueError, match="no code was counted"):
        codebook_usage(torch.zeros(5, dtype=torch.long))


def test_dead_codes_move_onto_latents() -> None:
    codebook, latents = normal(6, 3), 10 + normal(2, 3, 4, 5, seed=1)
    counts = torch.tensor([5, 0, 2, 0, 9, 1])
    renewed, dead = revive_dead_codes(codebook, counts, latents, torch.Generator().manual_seed(0))
    assert dead.tolist() == [False, True, False, True, False, False]
    assert torch.equal(renewed[~dead], codebook[~dead])
    points = bottleneck.as_points(latents)
    matches = (renewed[dead][:, None] == points[None]).all(2)
    assert matches.any(1).all()
    assert not torch.equal(renewed[1], renewed[3])
    again, _ = revive_dead_codes(codebook, counts, latents, torch.Generator().manual_seed(0))
    assert torch.equal(renewed, again)


def test_kmeans_finds_separate_clusters() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = (centres[:, None] + 0.1 * normal(4, 30, 2)).reshape(-1, 2)
    found = kmeans(points, 4, torch.Generator().manual_seed(3), iterations=20)
    expected = points.reshape(4, 30, 2).mean(1)
    assert torch.allclose(found[nearest_codes(expected, found)], expected, atol=1e-4)
    assert kmeans(points[:3], 8, torch.Generator().manual_seed(0)).shape == (8, 2)
