"""The U-Net's construction, its handling of the condition, and what must not change its numbers."""

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from denoiser.contract import (
    FULL,
    GIVEN,
    TIMES,
    B,
    C,
    H,
    W,
    X,
    check_each_sample_stands_alone,
    check_is_used,
    filled,
    full_condition,
    gaussian,
)
from sfumato.conditioning.condition import Condition, ConditionSpec
from sfumato.denoiser.blocks import AttentionBlock, BlockInputs, ResBlock, SpatialTransformer
from sfumato.denoiser.table import build_denoiser
from sfumato.denoiser.unet import UNet, UNetConfig


def build(spec: ConditionSpec = FULL, **changes: Any) -> UNet:
    options = {"channels": 32, "channel_multipliers": (1, 2), "blocks_per_level": 1, "attention_factors": (2,)}
    unet = UNet(UNetConfig.model_validate({**options, **changes}), C, spec)
    filled(unet)
    return unet.eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resample": "residual", "scale_shift_norm": True},
        {"resample": "pool", "heads": 4},
        {"linear_projections": True, "transformer_depth": 2},
        {"channel_multipliers": (1, 2, 2), "attention_factors": (1, 4, 64)},
    ],
)
def test_each_sample_stands_alone(changes: dict[str, Any]) -> None:
    check_each_sample_stands_alone(build(**changes))


@pytest.mark.parametrize("name", GIVEN)
def test_everything_given_is_used(name: str) -> None:
    check_is_used(build(), name)


def test_masked_tokens_change_nothing() -> None:
    unet = build()
    given = full_condition().tensors()
    out = unet(X, TIMES, Condition(**given))
    changed = given["tokens"].clone()
    changed[0, 3:] = 9
    torch.testing.assert_close(unet(X, TIMES, Condition(**{**given, "tokens": changed})), out)
    del given["mask"]
    assert not torch.allclose(unet(X, TIMES, Condition(**{**given, "tokens": changed})), out)


def test_starts_as_zero() -> None:
    unet = UNet(UNetConfig(channels=32, channel_multipliers=(1,)), C, ConditionSpec())
    assert unet(X, TIMES, Condition()).abs().max() == 0


@pytest.mark.parametrize("token_dim", [None, 6])
def test_layouts_and_checkpointing_give_the_same_numbers_and_gradients(token_dim: int | None) -> None:
    unet = build(ConditionSpec(token_dim=token_dim)).train()
    condition = Condition() if token_dim is None else Condition(tokens=gaussian(B, 7, 6))
    out = unet(X, TIMES, condition)
    out.square().mean().backward()
    expected = {name: p.grad for name, p in unet.named_parameters()}
    for parameter in unet.parameters():
        parameter.grad = None
    unet.checkpointing = True
    unet.to(memory_format=torch.channels_last)
    again = unet(X.to(memory_format=torch.channels_last), TIMES, condition)
    assert again.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(again, out, atol=1e-5, rtol=1e-4)
    again.square().mean().backward()
    for name, parameter in unet.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-3)


def test_runs_in_bfloat16() -> None:
    unet = build()
    condition = full_condition()
    expected = unet(X, TIMES, condition)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = unet(X, TIMES, condition)
    whole = unet.bfloat16()(X.bfloat16(), TIMES, _bfloat16(condition))
    scale = expected.abs().max()
    for out in (mixed, whole):
        assert (out.float() - expected).abs().max() / scale < 5e-2


def _bfloat16(condition: Condition) -> Condition:
    tensors = condition.tensors()
    return Condition(**{name: v.bfloat16() if v.is_floating_point() else v for name, v in tensors.items()})


def test_attention_orders_are_the_same_function_of_permuted_weights() -> None:
    heads, channels = 4, 32
    a, b = AttentionBlock(channels, heads), AttentionBlock(channels, heads, "qkv_first")
    filled(a)
    weights = a.state_dict()
    for name in ("qkv.weight", "qkv.bias"):
        weights[name] = weights[name].unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
    b.load_state_dict(weights)
    x, inputs = gaussian(B, channels, 2, 3), BlockInputs(torch.zeros(B, 1))
    torch.testing.assert_close(a(x, inputs), b(x, inputs))
    b.load_state_dict(a.state_dict())
    assert not torch.allclose(a(x, inputs), b(x, inputs), atol=1e-3)


def test_linear_projections_are_the_same_function() -> None:
    conv, linear = SpatialTransformer(32, 2, 1, 6), SpatialTransformer(32, 2, 1, 6, linear=True)
    filled(conv)
    linear.load_state_dict({k: v.flatten(1) if v.dim() == 4 else v for k, v in conv.state_dict().items()})
    x, inputs = gaussian(B, 32, 2, 3), BlockInputs(torch.zeros(B, 1), gaussian(B, 7, 6))
    torch.testing.assert_close(conv(x, inputs), linear(x, inputs), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_residual_block_is_the_formula(resample: Literal["up", "down"] | None) -> None:
    block = ResBlock(32, 64, 8, resample=resample)
    filled(block)
    w = block.state_dict()
    x, embedding = gaussian(B, 32, 4, 6), gaussian(B, 8, seed=1)

    def resized(y: Tensor) -> Tensor:
        if resample == "up":
            return y.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return y.unflatten(2, (2, 2)).unflatten(4, (3, 2)).mean((3, 5)) if resample == "down" else y

    h = F.silu(F.group_norm(x, 32, w["in_layers.0.weight"], w["in_layers.0.bias"]))
    h = F.conv2d(resized(h), w["in_layers.2.weight"], w["in_layers.2.bias"], padding=1)
    h = h + (F.silu(embedding) @ w["emb_layers.1.weight"].T + w["emb_layers.1.bias"])[:, :, None, None]
    h = F.silu(F.group_norm(h, 32, w["out_layers.0.weight"], w["out_layers.0.bias"]))
    h = F.conv2d(h, w["out_layers.3.weight"], w["out_layers.3.bias"], padding=1)
    skip = F.conv2d(resized(x), w["skip_connection.weight"], w["skip_connection.bias"])
    torch.testing.assert_close(block(x, BlockInputs(embedding)), skip + h, atol=1e-5, rtol=1e-4)


def test_scale_comes_before_shift() -> None:
    block = ResBlock(32, 32, 8, scale_shift=True)
    filled(block)
    with torch.no_grad():
        block.emb_layers[1].weight.zero_()
        block.emb_layers[1].bias[:32] = -1.0  # scale: 1 + (-1) wipes the branch out
        block.emb_layers[1].bias[32:] = 0.0
    x = gaussian(B, 32, 4, 6)
    out = block(x, BlockInputs(gaussian(B, 8)))
    torch.testing.assert_close(out, x + block.out_layers[3].bias[:, None, None])


def test_vector_projection_none_adds_the_vector_to_the_embedding() -> None:
    unet = build(ConditionSpec(vector_dim=128), vector_projection="none")
    vector = gaussian(B, 128)
    assert not any(name.startswith("label_emb") for name in unet.state_dict())
    difference = unet._embedding(TIMES, vector) - unet._embedding(TIMES, None)
    torch.testing.assert_close(difference, vector, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="4 x channels = 128 entries, not 5"):
        build(vector_projection="none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vector": None}, "condition.vector is missing"),
        ({"tokens": None, "mask": None}, "condition.tokens is missing"),
        ({"spatial": None}, "condition.spatial is missing"),
        ({"tokens": gaussian(B, 7, 9)}, r"condition.tokens has shape \(3, 7, 9\), expected \(3, any, 6\)"),
        ({"mask": torch.ones(B, 6, dtype=torch.bool)}, r"condition.mask has shape \(3, 6\), expected \(3, 7\)"),
        (
            {"spatial": gaussian(B, 2, H, W + 2)},
            r"condition.spatial has shape \(3, 2, 8, 14\), expected \(3, 2, 8, 12\)",
        ),
        ({"vector": gaussian(B + 1, 5)}, "condition.vector has shape"),
    ],
)
def test_wrong_conditions_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()(X, TIMES, Condition(**{**full_condition().tensors(), **changes}))


def test_unexpected_conditions_and_sizes_are_named() -> None:
    unet = build(ConditionSpec())
    with pytest.raises(ValueError, match=r"condition\.tokens is given, but the denoiser was built without it"):
        unet(X, TIMES, Condition(tokens=gaussian(B, 7, 6)))
    with pytest.raises(ValueError, match="size 8x11 must be a multiple of 2"):
        unet(X[..., :11], TIMES, Condition())
    with pytest.raises(ValueError, match="x_t has 3 channels, the denoiser was built for 4"):
        unet(X[:, :3], TIMES, Condition())


def test_every_norm_has_the_groups_asked_for() -> None:
    config = UNetConfig(channels=24, channel_multipliers=(1, 2), attention_factors=(2,), head_channels=8, norm_groups=6)
    for spec in (ConditionSpec(), ConditionSpec(token_dim=5)):
        norms = [m for m in UNet(config, 3, spec).modules() if isinstance(m, torch.nn.GroupNorm)]
        assert norms
        assert {norm.num_groups for norm in norms} == {6}


def test_configurations_are_checked() -> None:
    assert UNetConfig(heads=8).head_channels is None
    assert build_denoiser(UNetConfig(channels=32), C, ConditionSpec()).config.factor == 4
    for options, message in (
        ({"heads": 8, "head_channels": 32}, "exactly one of heads and head_channels"),
        ({"head_channels": None}, "exactly one of heads and head_channels"),
        ({"channels": 100}, "multiple of norm_groups = 32"),
        ({"channels": 32, "head_channels": 24}, "head_channels 24 does not divide the 32 channels"),
        ({"channels": 32, "attention_factors": (), "heads": 3}, "heads 3 does not divide the 128 channels"),
    ):
        with pytest.raises(ValidationError, match=message):
            UNetConfig.model_validate(options)
