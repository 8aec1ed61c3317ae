"""Packed networks against plain ones, in both precisions, with and without the native kernels."""

import copy

import pytest
import torch
from engine_cases import CASES, distance
from torch import nn

import tiny
from sfumato.conditioning.condition import Condition
from sfumato.engine import fused_denoiser, packing, upsample
from sfumato.engine.inference import for_inference
from sfumato.engine.packing import PackedConv2d, PackedLinear

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "bf16"])
@pytest.mark.parametrize("how", ["native", "no-kernels", "no-packing"])
@torch.no_grad()
def test_packed_equals_plain(case: str, dtype: torch.dtype, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_NATIVE", "0" if how == "no-kernels" else "1")
    if how == "no-packing":
        monkeypatch.setattr(packing, "packs", lambda dtype: False)
    network, run = CASES[case]()
    expected = run(copy.deepcopy(network).eval())
    with torch.autocast("cpu", torch.bfloat16):
        autocast = run(copy.deepcopy(network).eval()).float()
    fast = for_inference(network, dtype)
    first = run(fast)
    assert first.dtype == expected.dtype
    assert distance(first.double(), expected.double()) < TOLERANCE[dtype]
    if dtype == torch.bfloat16:
        assert distance(first.double(), expected.double()) < 1.2 * distance(autocast.double(), expected.double())
    assert torch.equal(run(fast), first)


@torch.no_grad()
def test_every_layer_of_weight_is_packed_once() -> None:
    network, run = CASES["unet-text"]()
    numbers = sum(p.numel() for name, p in network.named_parameters() if p.dim() > 1 and "time_embed" not in name)
    upsampled = network.get_submodule("output_blocks.1.2.conv").weight.numel()
    for_inference(network, torch.float32)
    run(network)
    doubling = network.get_submodule("output_blocks.1.2.conv")
    assert isinstance(doubling, upsample.PackedUpsample)
    rewritten = doubling.phases is not None  # or it is filtered: that is the kernels' affair
    packed = {name: m for name, m in network.named_modules() if isinstance(m, PackedConv2d | PackedLinear)}
    held = sum(m.weight.numel() for name, m in packed.items() if not (rewritten and name.endswith("direct")))
    assert held == numbers + (upsampled * 7 // 9 if rewritten else 0)
    left = [name for name, p in network.named_parameters() if p.dim() > 1]
    assert all(name.startswith("time_embed") for name in left)
    assert not any(isinstance(m, nn.Conv2d | nn.Conv1d) for m in network.modules())


@pytest.mark.skipif(not packing.packs(torch.float32), reason="this torch cannot pack")
@torch.no_grad()
def test_another_shape_packs_anew_and_a_copy_computes_the_same() -> None:
    layer = nn.Conv2d(8, 24, 3, padding=1, stride=2)
    packed = PackedConv2d.of(layer, torch.float32)
    for size in ((2, 8, 9, 9), (1, 8, 4, 6), (2, 8, 9, 9)):
        x = torch.randn(size)
        torch.testing.assert_close(packed(x), layer(x))
    torch.testing.assert_close(packed.weight, layer.weight)
    torch.testing.assert_close(copy.deepcopy(packed)(x), layer(x))


@pytest.mark.skipif(not packing.packs(torch.float32), reason="this torch cannot pack")
@torch.no_grad()
def test_larger_batches_use_what_is_packed_and_one_sample_has_its_own_layout() -> None:
    conv, linear = nn.Conv2d(8, 24, 3, padding=1), nn.Linear(8, 24)
    packed = PackedConv2d.of(conv, torch.float32), PackedLinear.of(linear, dtype=torch.float32)
    kept = []
    for batch in (2, 3, 5, 1):
        x = torch.randn(batch, 8, 6, 5)
        torch.testing.assert_close(packed[0](x), conv(x))
        tokens = x.flatten(2).transpose(1, 2).contiguous()
        torch.testing.assert_close(packed[1](tokens), linear(tokens))
        kept.append([layer._weight for layer in packed])
    assert all(a is b for again in kept[1:3] for a, b in zip(again, kept[0], strict=True))
    assert all(a is not b for a, b in zip(kept[3], kept[0], strict=True))


@torch.no_grad()
def test_layers_of_one_input_are_one_map() -> None:
    one, two = nn.Linear(8, 5, bias=False), nn.Linear(8, 7, bias=False)
    x = torch.randn(2, 3, 8)
    residual = torch.randn(2, 3, 12)
    expected = torch.cat([one(x), two(x)], -1) + residual
    torch.testing.assert_close(PackedLinear.of(one, two, dtype=torch.float32)(x, residual), expected)


@torch.no_grad()
def test_feed_forward_in_parts_equals_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    network, run = CASES["unet-text"]()
    fast = for_inference(network, torch.float32)
    whole, rows = run(fast), []
    monkeypatch.setattr(fused_denoiser, "PART_BYTES", 2**15)
    fast.get_submodule("middle_block.1.transformer_blocks.0.ff.net.0").register_forward_pre_hook(
        lambda _, given: rows.append(given[0].shape)
    )
    torch.testing.assert_close(run(fast), whole)
    assert rows == [(12, 64)] * 4, "48 tokens of 64 channels"


@torch.no_grad()
def test_strips_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = upsample.PackedUpsample(nn.Conv2d(16, 8, 3, padding=1), torch.float32)
    assert layer.direct is None, "eight channels are too few for the other way"
    x = torch.randn(2, 16, 12, 5).contiguous(memory_format=torch.channels_last)
    whole = layer(x)
    monkeypatch.setattr(upsample, "STRIP_BYTES", 2000)
    torch.testing.assert_close(layer(x), whole)


def test_a_doublings_weights_are_summed_before_they_are_rounded() -> None:
    layer = nn.Conv2d(32, 32, 3, padding=1)
    phases = upsample.PackedUpsample(layer, torch.bfloat16).phases
    assert phases is not None
    exact, _ = upsample.phase_parameters(layer.weight, layer.bias)
    assert torch.equal(phases.weight, exact.to(torch.bfloat16))


@torch.no_grad()
def test_a_result_does_not_depend_on_the_batches_of_earlier_calls() -> None:
    """Otherwise an image of a service would depend on what others had asked for before it."""
    noise = torch.randn(5, 3, 8, 12, generator=torch.Generator().manual_seed(2))
    times = torch.full((5,), 400.0)
    results = []
    for order in ((1, 2, 5), (5, 2, 1)):
        model = tiny.model(tiny.UNCONDITIONAL).for_inference(torch.float32)
        assert model.second is not None
        each = {B: model.second.denoiser(noise[:B], times[:B], Condition()) for B in order}
        results.append([each[B] for B in (1, 2, 5)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
