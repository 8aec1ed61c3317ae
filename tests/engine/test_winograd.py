"""Filtered 3×3 convolutions against their definition in float64, values and gradients."""

import copy
from collections.abc import Iterator
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from engine_cases import CASES, unet
from torch import Tensor, nn

from sfumato.engine import native, winograd
from sfumato.engine.inference import for_inference
from sfumato.engine.packing import PackedConv2d
from sfumato.engine.training import for_training
from sfumato.engine.upsample import PackedUpsample, upsample_conv

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.describe())
CL = torch.channels_last
FEW_TILES = [(2, 160, 64, 8, 8), (1, 288, 96, 17, 14)]  # B, C, C', H, W
SHAPES = [(1, 32, 32, 33, 41), (5, 64, 96, 16, 16), (3, 160, 32, 18, 30), (2, 32, 288, 40, 33), *FEW_TILES]


def case(B: int, C: int, out: int, H: int, W: int, scale: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An image, a layer's weight and bias, and a residual."""
    g = torch.Generator().manual_seed(B + C)
    x = F.silu(torch.randn(B, C, H, W, generator=g)).contiguous(memory_format=CL)
    weight = (torch.randn(out, C, 3, 3, generator=g) / (9 * C) ** 0.5).contiguous(memory_format=CL)
    residual = torch.randn(B, out, scale * H, scale * W, generator=g).contiguous(memory_format=CL)
    return x, weight, torch.randn(out, generator=g), residual


def error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", list(product((0, 1), repeat=2)))
def test_filtered_is_the_convolution(shape: tuple[int, ...], padding: tuple[int, int]) -> None:
    x, weight, bias, _ = case(*shape)
    y = winograd.filtered(x, weight, bias, padding=padding)
    assert y.is_contiguous(memory_format=CL)
    assert error(y, F.conv2d(x.double(), weight.double(), bias.double(), padding=padding)) < 5e-6
    panels = winograd.to_panels(weight)
    assert torch.equal(winograd.from_panels(panels), weight)
    packed = winograd.filtered(x, panels, bias, padding=padding)
    assert torch.equal(packed, y), "the same numbers, read in another order"


def test_points_are_exact_for_numbers_that_are() -> None:
    """Small integers: whatever is off is more than rounding."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 4, (1, 32, 24, 24), generator=g).float().contiguous(memory_format=CL)
    weight = torch.randint(-3, 4, (32, 32, 3, 3), generator=g).float().contiguous(memory_format=CL)
    y = winograd.filtered(x, weight, None)
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    assert torch.equal(y.round().double(), expected)
    assert (y - expected).abs().max().item() < 1e-3


@pytest.mark.parametrize("reuse", [False, True])
def test_a_residual_is_added_and_only_overwritten_where_allowed(reuse: bool) -> None:
    x, weight, bias, residual = case(*SHAPES[0])
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1) + residual
    kept = residual.clone()
    y = winograd.filtered(x, weight, bias, residual, reuse=reuse)
    assert error(y, expected) < 5e-6
    assert (y.data_ptr() == residual.data_ptr()) == reuse
    assert reuse or torch.equal(residual, kept)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("doubled", [False, True])
def test_gradients_are_the_convolutions(shape: tuple[int, ...], doubled: bool) -> None:
    x, weight, bias, residual = case(*shape, scale=1 + doubled)
    layer = winograd.FilteredConv2d(shape[1], shape[2], 3, padding=1)
    layer.weight.data, layer.bias = weight.clone(memory_format=torch.contiguous_format), nn.Parameter(bias)
    leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, residual)]
    y = upsample_conv(layer, leaves[0]) + leaves[1] if doubled else layer(*leaves)
    assert error(y.detach(), _exact(x, weight, bias, doubled) + residual) < 5e-6

    dy = torch.randn_like(y)
    y.backward(dy)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    _exact(exact[0], exact[1], exact[2], doubled).backward(dy.double())
    assert leaves[1].grad is not None
    assert torch.equal(leaves[1].grad, dy)
    for found, expected in zip((leaves[0].grad, layer.weight.grad, layer.bias.grad), exact, strict=True):
        assert found is not None
        assert expected.grad is not None
        assert error(found, expected.grad) < 2e-5


def _exact(x: Tensor, weight: Tensor, bias: Tensor, doubled: bool) -> Tensor:
    image = F.interpolate(x, scale_factor=2.0) if doubled else x
    return F.conv2d(image.double(), weight.double(), bias.double(), padding=1)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(2, 64, 160, 37, 30), (1, 64, 160, 30, 29)])
def test_threads_share_the_work_and_change_nothing(shape: tuple[int, ...], threads: None) -> None:
    x, weight, bias, dy = case(*shape)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        layer = winograd.FilteredConv2d(64, 160, 3, padding=1)
        layer.weight.data, layer.bias = weight.clone(), nn.Parameter(bias)
        y = layer(x)
        y.backward(dy)
        assert layer.weight.grad is not None
        found.append((y.detach(), layer.weight.grad))
    assert all(torch.equal(a, b) for one in found[1:] for a, b in zip(one, found[0], strict=True))


@torch.no_grad()
def test_a_packed_layer_goes_to_and_fro_between_sizes() -> None:
    layer = nn.Conv2d(32, 64, 3, padding=1)
    packed = PackedConv2d.of(layer, torch.float32)
    for side, filters in ((4, False), (40, True), (5, False), (41, True), (16, True)):
        x = torch.randn(1, 32, side, side)
        torch.testing.assert_close(packed(x), layer(x), atol=1e-5, rtol=1e-5)
        assert (packed._shape is None) == filters, "packed for the library, or in panels"
        torch.testing.assert_close(packed.weight, layer.weight)
    torch.testing.assert_close(copy.deepcopy(packed)(x), packed(x))


@torch.no_grad()
def test_a_packed_doubling_goes_to_and_fro_between_sizes() -> None:
    layer = nn.Conv2d(32, 64, 3, padding=1)
    packed = PackedUpsample(layer, torch.float32)
    for side in (4, 33, 5, 32):
        x = torch.randn(1, 32, side, side).contiguous(memory_format=CL)
        torch.testing.assert_close(packed(x), layer(F.interpolate(x, scale_factor=2.0)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"stride": 2}, {"dilation": 2, "padding": 2}, {"groups": 2}, {"padding_mode": "circular"}, {"kernel_size": 1}],
)
def test_other_convolutions_are_left_alone(options: dict[str, int]) -> None:
    arguments = {"kernel_size": 3, "padding": 1, **options}
    layer = winograd.FilteredConv2d(64, 64, **arguments)  # type: ignore[arg-type]
    x = torch.randn(1, 64, 40, 40).contiguous(memory_format=CL)
    assert not winograd.usable(layer, x)
    assert torch.equal(layer(x), nn.Conv2d.forward(layer, x))


def test_what_the_kernels_do_not_take_goes_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = winograd.FilteredConv2d(32, 32, 3, padding=1), torch.randn(1, 32, 40, 40).contiguous(memory_format=CL)
    assert winograd.usable(layer, x)
    assert not winograd.usable(layer, x.contiguous()), "the other memory order"
    assert not winograd.usable(layer, x[:, :, :8, :8].contiguous(memory_format=CL)), "a small image"
    assert not winograd.usable(layer, x.double()), "another type"
    assert not winograd.usable(winograd.FilteredConv2d(32, 3, 3, padding=1), x), "three channels"
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.usable(layer, x)
        assert layer(x).dtype == torch.bfloat16
    monkeypatch.setenv("SFUMATO_NATIVE", "0")
    assert not winograd.usable(layer, x)
    torch.testing.assert_close(layer(x), nn.Conv2d.forward(layer, x))


@pytest.mark.parametrize("name", ["unet-large", "autoencoder-large"])
def test_networks_reach_the_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Falling back silently would keep every equality."""
    calls: list[int] = []
    original = winograd.filtered
    monkeypatch.setattr(winograd, "filtered", lambda *a, **k: calls.append(k.get("scale", 1)) or original(*a, **k))
    network, run = CASES[name]()
    run(for_training(copy.deepcopy(network)))
    trained = len(calls)
    with torch.no_grad():
        run(for_inference(network, torch.float32))
    assert trained > 8
    assert len(calls) - trained > 8
    assert 2 in calls[trained:], "the doubling too"


def test_a_small_unet_stays_with_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(winograd, "filtered", lambda *given, **named: calls.append(given))
    network, run = unet(False)
    run(for_training(network))
    assert not calls
