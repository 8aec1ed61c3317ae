"""Parity with the reference packages on the same features and images, where they are installed."""

import contextlib
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.autoencoder.perceptual import load_lpips
from sfumato.evaluation.frechet import GaussianStatistics, frechet_distance
from sfumato.evaluation.image_quality import ms_ssim, psnr, ssim
from sfumato.evaluation.inception import FIDInception
from sfumato.evaluation.inception_score import InceptionScore
from sfumato.evaluation.kernel import kernel_distance
from sfumato.evaluation.precision_recall import precision_recall
from sfumato.evaluation.resize import resize

_TORCHVISION = torch.library.Library("torchvision", "FRAGMENT")
"""Beside a torch without them, torchvision's compiled operators must be declared for its import to work."""


def package(name: str) -> Any:
    """The module, or a skip."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        pytest.skip(f"{name} is not installed")
    if importlib.util.find_spec("torchvision") is not None:
        for schema in (
            "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        ):
            with contextlib.suppress(RuntimeError):  # declared already
                _TORCHVISION.define(schema)
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{name} cannot be imported: {error}")


def features(n: int, seed: int, shift: float = 0.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 16, generator=g, dtype=torch.float64) @ torch.randn(16, 16, generator=g).double() + shift


X, Y = features(80, 0), features(80, 1, 0.5)


def test_frechet_distance() -> None:
    fid = package("torch_fidelity.metric_fid")
    statistics = [fid.fid_features_to_statistics(rows) for rows in (X, Y)]
    expected = fid.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    found = frechet_distance(GaussianStatistics.of(X), GaussianStatistics.of(Y))
    assert found == pytest.approx(expected, rel=1e-4)


def test_frechet_distance_of_clean_fid() -> None:
    fid = package("cleanfid.fid")
    a, b = GaussianStatistics.of(X), GaussianStatistics.of(Y)
    moments = (part.numpy() for part in (a.mean(), a.covariance(), b.mean(), b.covariance()))
    assert frechet_distance(a, b) == pytest.approx(float(fid.frechet_distance(*moments)), rel=1e-4)


def test_kernel_distance() -> None:
    kid = package("torch_fidelity.metric_kid")
    reference = kid.kid_features_to_metric(X, Y, kid_subsets=1, kid_subset_size=80, verbose=False)
    found = kernel_distance(X, Y, torch.Generator())
    assert found.mean == pytest.approx(reference["kernel_inception_distance_mean"], rel=1e-4)


def test_inception_score() -> None:
    isc = package("torch_fidelity.metric_isc")
    reference = isc.isc_features_to_metric(X, 10, False, 0)
    counted = InceptionScore(80, 10)
    counted.update(X)
    assert counted.finish().mean == pytest.approx(reference["inception_score_mean"], rel=1e-4)
    assert counted.finish().std == pytest.approx(reference["inception_score_std"], rel=1e-4)


def test_precision_and_recall() -> None:
    prc = package("torch_fidelity.metric_prc")
    reference = prc.prc_features_to_metric(
        Y, X, prc_neighborhood=3, verbose=False
    )  # since 0.4.0 the generated come first
    found = precision_recall(X, Y, 3)
    assert found.precision == pytest.approx(reference["precision"], rel=1e-4)
    assert found.recall == pytest.approx(reference["recall"], rel=1e-4)


def test_lpips(tmp_path: Path) -> None:
    package("torchvision")
    theirs = package("lpips").LPIPS(net="vgg", pnet_rand=True, verbose=False)  # the heads are in the package
    state = theirs.state_dict()
    backbone = {f"features.{name.split('.', 2)[2]}": value for name, value in state.items() if name.startswith("net.")}
    heads = {name: value for name, value in state.items() if name.startswith("lin") and "." in name}
    torch.save(backbone, tmp_path / "vgg16.pth")
    torch.save({name: value for name, value in heads.items() if not name.startswith("lins")}, tmp_path / "vgg.pth")
    ours = load_lpips(tmp_path / "vgg16.pth", tmp_path / "vgg.pth")
    g = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 48, 64, generator=g) * 2 - 1
    y = (x + 0.3 * torch.randn(x.shape, generator=g)).clamp(-1, 1)
    with torch.no_grad():
        expected = theirs(x, y).flatten()
    assert expected.std() > 0
    torch.testing.assert_close(ours(x, y), expected, rtol=1e-4, atol=1e-7)


def test_density_and_coverage() -> None:
    prdc = package("prdc")
    reference = prdc.compute_prdc(X.numpy(), Y.numpy(), nearest_k=5)
    found = precision_recall(X, Y, 5, 5)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(found, name) == pytest.approx(float(reference[name]), rel=1e-4)


def test_tensorflow_s_resize() -> None:
    module = package("torch_fidelity.interpolate_compat_tensorflow")
    x = torch.rand(1, 3, 41, 67, generator=torch.Generator().manual_seed(0)) * 255
    expected = module.interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
    torch.testing.assert_close(resize(x, (299, 299), "tensorflow"), expected, rtol=1e-4, atol=1e-2)


def test_the_inception_s_keys_and_outputs() -> None:
    module = package("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    ours = FIDInception()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: ours.state_dict())
        theirs = module.FeatureExtractorInceptionV3("ours", ["2048", "logits_unbiased"])
    pixels = torch.randint(0, 256, (1, 3, 299, 299), dtype=torch.uint8)
    vector, logits = theirs(pixels)
    found = ours(pixels.float() / 127.5 - 1)
    torch.testing.assert_close(found.pooled, vector, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-5)


def test_similarity_of_images() -> None:
    images = package("torchmetrics.functional.image")
    g = torch.Generator().manual_seed(0)
    x = torch.rand(2, 1, 192, 192, generator=g)
    y = (x + 0.1 * torch.rand(2, 1, 192, 192, generator=g)).clamp(0, 1)
    expected = images.structural_similarity_index_measure(y, x, data_range=1.0)
    assert ssim(y, x, 1.0).mean().item() == pytest.approx(expected.item(), rel=1e-4)
    expected = images.multiscale_structural_similarity_index_measure(y, x, data_range=1.0)
    assert ms_ssim(y, x, 1.0).mean().item() == pytest.approx(expected.item(), rel=1e-4)
    expected = images.peak_signal_noise_ratio(y, x, data_range=1.0, dim=(1, 2, 3), reduction="elementwise_mean")
    assert psnr(y, x, 1.0).mean().item() == pytest.approx(expected.item(), rel=1e-4)
