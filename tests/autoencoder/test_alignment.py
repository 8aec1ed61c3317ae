"""Alignment with a frozen network: its losses by loops, where its gradients go, and what it does to a training."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runs import SIZE, Images, assert_same_tensors, first_run, saved, train_first
from sfumato import rng
from sfumato.autoencoder.alignment import AlignmentConfig, alignment, marginal_cosine, marginal_distances
from sfumato.autoencoder.latent_changes import NO_CHANGE
from sfumato.autoencoder.losses import adaptive_weight
from sfumato.errors import UserError
from sfumato.evaluation.features import FeatureNetwork, Features, MapNetwork, efficientnet_lite0
from sfumato.evaluation.pretrained import as_map
from sfumato.training.alignment import build_alignment
from sfumato.training.autoencoder import build_stage1
from sfumato.training.log import read_lines
from sfumato.training.stage1_losses import AutoencoderPass, generator_losses
from sfumato.training.workers import Workers

ALIGNED = "loss.alignment={weight: 0.5, features: colours, cosine_margin: 0.0, distance_margin: 0.0}"


class Colours(MapNetwork):
    """The mean colours of 4×4 squares, squared and not, as a network of 6 features."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, images: Tensor) -> Features:
        return Features(self.maps(images).mean(dim=(2, 3)))

    def maps(self, images: Tensor) -> Tensor:
        small = F.avg_pool2d(images, 4) * self.scale
        return torch.cat([small, small.square()], dim=1)


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> FeatureNetwork:
    network = FeatureNetwork("colours", Colours(), 6, (16, 16), "bicubic", "0" * 64)
    monkeypatch.setattr("sfumato.training.alignment.load_network", lambda name, weights: network)
    return network


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng.generator(seed, "test", 1))


# ---- the losses


def test_the_losses_are_their_formulas() -> None:
    z, mapped, features = noise(2, 3, 4, 6), noise(2, 5, 4, 6, seed=1), noise(2, 5, 4, 6, seed=2)
    cosines, pairs = [], []
    for b in range(2):
        columns = [(z[b].flatten(1)[:, i], mapped[b].flatten(1)[:, i], features[b].flatten(1)[:, i]) for i in range(24)]
        cosines += [max(0.0, 1 - 0.5 - F.cosine_similarity(m, f, dim=0).item()) for _, m, f in columns]
        for z_i, _, f_i in columns:
            for z_j, _, f_j in columns:
                apart = F.cosine_similarity(z_i, z_j, dim=0) - F.cosine_similarity(f_i, f_j, dim=0)
                pairs.append(max(0.0, apart.abs().item() - 0.25))
    first, second = sum(cosines) / len(cosines), sum(pairs) / len(pairs)
    assert marginal_cosine(mapped, features, 0.5).item() == pytest.approx(first, rel=1e-5)
    assert marginal_distances(z, features, 0.25).item() == pytest.approx(second, rel=1e-4)
    assert alignment(AlignmentConfig(), z, mapped, features).item() == pytest.approx(first + second, rel=1e-4)


def test_what_is_aligned_costs_nothing() -> None:
    features = noise(2, 5, 4, 6)
    config = AlignmentConfig(cosine_margin=0, distance_margin=0)
    assert alignment(config, 3 * features, 2 * features, features).item() == pytest.approx(0, abs=1e-6)
    large = noise(1, 5, 40, 48)
    assert marginal_distances(large, large, 0).item() == pytest.approx(0, abs=1e-6)


def test_features_of_another_size_are_resampled() -> None:
    features = noise(1, 5, 8, 12)
    z = F.interpolate(features, (4, 6), mode="bilinear", antialias=True, align_corners=False)
    config = AlignmentConfig(cosine_margin=0, distance_margin=0)
    assert alignment(config, z, z, features).item() == pytest.approx(0, abs=1e-6)


# ---- gradients


def test_the_gradient_reaches_the_encoder_and_the_map_alone() -> None:
    config = first_run(ALIGNED)
    modules = build_stage1(config, Workers())
    assert modules.alignment is not None
    image = noise(2, 3, SIZE, SIZE).clamp(-1, 1)
    passed = AutoencoderPass(modules.autoencoder, modules.log_variance, modules.alignment.mapping)
    encoding, output, mapped = passed(image, noise(2, 3, SIZE // 2, SIZE // 2), NO_CHANGE)
    features = modules.alignment.features(image)
    assert not features.requires_grad
    aligned = alignment(config.loss.alignment, encoding.z, mapped, features)
    decoder = (*modules.autoencoder.decoder.parameters(), *modules.autoencoder.post_quant_conv.parameters())
    found = torch.autograd.grad(aligned, decoder, retain_graph=True, allow_unused=True)
    assert all(each is None for each in found)
    reached = (modules.autoencoder.encoder.conv_in.weight, modules.alignment.mapping.weight)
    assert all(bool(each.abs().sum() > 0) for each in torch.autograd.grad(aligned, reached, retain_graph=True))

    last = modules.autoencoder.encoder.conv_out.weight
    total, terms = generator_losses(config.loss, modules, image, output, encoding, 0.0, Workers(), aligned=aligned)
    plain, _ = generator_losses(config.loss, modules, image, output, encoding, 0.0, Workers())
    (of_alignment,) = torch.autograd.grad(total - plain, last, retain_graph=True)
    (of_image,) = torch.autograd.grad(terms_of(config, image, output), last, retain_graph=True)
    assert of_alignment.norm().item() == pytest.approx(0.5 * of_image.norm().item(), rel=2e-2)
    assert terms["alignment"].item() == pytest.approx(aligned.item())
    assert set(modules.trained) == {modules.autoencoder, modules.log_variance, modules.alignment.mapping}


def terms_of(config: object, image: Tensor, output: Tensor) -> Tensor:
    """The error of the reconstruction that the tiny run is trained on."""
    return (image - output).abs().mean()


def test_the_weight_balances_the_gradients() -> None:
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    assert adaptive_weight(x.sum(), (2 * x).sum(), x).item() == pytest.approx(0.5, rel=1e-3)


# ---- in training


def test_training_aligns_the_latent_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    constant = (ALIGNED, "train.optimiser.decay=constant", "train.batch=8", "train.optimiser.learning_rate=3e-3")
    train_first(tmp_path / "whole", first_run(*constant, "train.steps=16", "train.save_every=16"))
    for steps in (7, 16):
        train_first(tmp_path / "parts", first_run(*constant, f"train.steps={steps}", "train.save_every=16"))
    tensors = saved(tmp_path / "whole")[0]
    assert_same_tensors(tensors, saved(tmp_path / "parts")[0])
    assert any("alignment" in name for name in tensors)
    values = [line["alignment"] for line in read_lines(tmp_path / "whole" / "log.jsonl") if "alignment" in line]
    assert sum(values[-4:]) < 0.9 * sum(values[:4])


def test_the_model_does_not_contain_the_map() -> None:
    modules = build_stage1(first_run(ALIGNED), Workers())
    plain = build_stage1(first_run(), Workers())
    assert plain.alignment is None
    assert modules.autoencoder.state_dict().keys() == plain.autoencoder.state_dict().keys()
    for name, tensor in plain.autoencoder.state_dict().items():
        assert torch.equal(modules.autoencoder.state_dict()[name], tensor), "the same seed, the same weights"


def test_what_cannot_be_aligned_is_refused(colours: FeatureNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"loss\.alignment\.weight changes the latents, which train\.part decoder keeps"
    ):
        first_run(ALIGNED, "train.part=decoder", "start=somewhere")
    with pytest.raises(UserError, match=r"loss\.alignment needs images of 1 or 3 channels, not 4"):
        first_run(ALIGNED, "model.image_channels=4")
    bare = FeatureNetwork("bare", nn.Conv2d(3, 3, 1), 3, (16, 16), "bicubic", "0" * 64)
    monkeypatch.setattr("sfumato.training.alignment.load_network", lambda name, weights: bare)
    with pytest.raises(UserError, match="bare has no map of features"):
        build_alignment(AlignmentConfig(weight=0.1), 3, 0, Workers())
    monkeypatch.undo()
    with pytest.raises(UserError, match="feature network 'resnet' is not one of"):
        build_alignment(AlignmentConfig(weight=0.1, features="resnet"), 3, 0, Workers())


# ---- maps of real networks


def test_maps_of_the_networks() -> None:
    network = efficientnet_lite0(64)
    images = torch.stack([Images()[i].image for i in range(2)])
    found = network.maps(images)
    assert found.shape == (2, 112, 4, 4)
    spatial = network(images).spatial
    assert spatial is not None
    torch.testing.assert_close(found[:, :7].flatten(1), spatial)


def test_tokens_of_patches_become_a_map() -> None:
    tokens = torch.arange(2 * 7 * 3.0).reshape(2, 7, 3)  # a class token and 2 × 3 patches of 3 features
    found = as_map(tokens, torch.zeros(2, 3, 28, 42))
    assert found.shape == (2, 3, 2, 3)
    assert found[1, :, 1, 2].tolist() == tokens[1, 6].tolist()
    assert found[0, :, 0, 1].tolist() == tokens[0, 2].tolist()
