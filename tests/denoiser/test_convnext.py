"""The convolutional denoiser: its block against its equations, its condition, and every way a denoiser is used."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from denoiser.contract import (
    FULL,
    GIVEN,
    C,
    check_each_sample_stands_alone,
    check_fused_and_packed,
    check_gradients,
    check_is_used,
    check_recomputing_is_estimated,
    check_samples_saves_and_opens,
    filled,
    gaussian,
)
from sfumato import flops
from sfumato.conditioning.condition import ConditionSpec
from sfumato.config import load_config
from sfumato.denoiser.blocks import BlockInputs
from sfumato.denoiser.convnext import ConvNeXt, ConvNeXtBlock, ConvNeXtConfig, GlobalResponseNorm
from sfumato.denoiser.table import build_denoiser
from sfumato.denoiser.unet import UNetConfig
from sfumato.engine.training import for_training
from sfumato.errors import UserError
from sfumato.interop.diffusers_export import export_diffusers
from sfumato.training.diffusion_run import DiffusionRun

KIND = (
    "diffusion.denoiser={kind: convnext, channels: 32, channel_multipliers: [1, 2], blocks: [1, 2], attention_every: 1}"
)


def build(spec: ConditionSpec = FULL, **changes: Any) -> ConvNeXt:
    options = {"kind": "convnext", "channels": 32, "channel_multipliers": (1, 2), "blocks": (1, 2)}
    network = ConvNeXt(ConvNeXtConfig.model_validate({**options, **changes}), C, spec)
    filled(network)
    return network.eval()


def test_the_response_norm_is_its_equation() -> None:
    norm = GlobalResponseNorm(5)
    x = gaussian(2, 5, 3, 4)
    torch.testing.assert_close(norm(x), x)
    filled(norm)
    g = (x * x).sum((2, 3), keepdim=True).sqrt()
    n = g / g.mean(1, keepdim=True)
    expected = norm.weight[:, None, None] * (x * n) + norm.bias[:, None, None] + x
    torch.testing.assert_close(norm(x), expected, atol=1e-5, rtol=1e-5)


def test_the_block_is_its_equations_and_begins_as_the_identity() -> None:
    block = ConvNeXtBlock(8, 16, kernel=7, expansion=3, dropout=0.0)
    x, inputs = gaussian(2, 8, 6, 6), BlockInputs(gaussian(2, 16, seed=1))
    torch.testing.assert_close(block(x, inputs), x)
    filled(block)
    linear = block.modulation[1]
    scale, shift, gate = F.linear(F.silu(inputs.embedding), linear.weight, linear.bias)[..., None, None].chunk(3, 1)
    h = F.conv2d(x, block.depthwise.weight, block.depthwise.bias, padding=3, groups=8)
    h = (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
    h = torch.einsum("oc,bchw->bohw", block.widen.weight[:, :, 0, 0], h * (1 + scale) + shift)
    h = block.response(F.gelu(h + block.widen.bias[:, None, None]))
    h = torch.einsum("oc,bchw->bohw", block.narrow.weight[:, :, 0, 0], h) + block.narrow.bias[:, None, None]
    torch.testing.assert_close(block(x, inputs), x + gate * h, atol=1e-4, rtol=1e-4)


def test_each_sample_stands_alone() -> None:
    check_each_sample_stands_alone(build(channel_multipliers=(1, 1, 2), blocks=(1, 1, 3), head_channels=16))


@pytest.mark.parametrize("name", GIVEN)
def test_everything_given_is_used(name: str) -> None:
    check_is_used(build(), name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_and_fused_networks_compute_the_same(dtype: torch.dtype) -> None:
    check_fused_and_packed(build(), for_training(build()), dtype)


def test_recomputed_activations_give_the_same_gradients_and_less_memory() -> None:
    recomputed = build()
    recomputed.checkpointing = True
    check_gradients(build(), recomputed)
    check_recomputing_is_estimated(KIND)


def test_a_model_samples_saves_and_opens(tmp_path: Path) -> None:
    check_samples_saves_and_opens(KIND, ConvNeXt, tmp_path / "model")
    with pytest.raises(UserError, match="kind convnext cannot be exported"):
        export_diffusers(tmp_path / "model", tmp_path / "exported")


def test_a_run_names_it_and_one_without_a_kind_has_a_unet() -> None:
    text = load_config("zoo:toy/small-text", [], DiffusionRun)
    assert isinstance(text.denoiser, UNetConfig)
    asked = load_config("zoo:toy/small-text", ["denoiser={kind: convnext, blocks: [2, 2, 4]}"], DiffusionRun)
    assert isinstance(asked.denoiser, ConvNeXtConfig)
    assert asked.denoiser.factor == 4
    with torch.device("meta"):
        network = build_denoiser(asked.denoiser, 4, ConditionSpec(token_dim=64))
    assert isinstance(network, ConvNeXt)
    assert flops.denoise(asked.denoiser, 4, ConditionSpec(token_dim=64), (8, 8), 24) > 1e7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": (1, 2, 3)}, "one number for each of the 2 levels"),
        ({"kernel": 4}, "must be odd"),
        ({"head_channels": 48}, "does not divide the 64 channels"),
        ({"channels": 30}, "multiple of 4"),
        ({"blocks": (0, 1)}, "greater than or equal to 1"),
        ({"blocks": (1000, 1)}, "64"),
    ],
)
def test_impossible_networks_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build(**changes)
