"""The convolutional denoiser: its block against its equations, its condition, and every way a denoiser is used."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from denoiser.test_unet import FULL, TIMES, B, C, X, filled, full_condition, gaussian
from sfumato import flops
from sfumato.conditioning.condition import Condition, ConditionSpec
from sfumato.config import load_config
from sfumato.denoiser.blocks import BlockInputs
from sfumato.denoiser.convnext import ConvNeXt, ConvNeXtBlock, ConvNeXtConfig, GlobalResponseNorm
from sfumato.denoiser.table import build_denoiser
from sfumato.denoiser.unet import UNetConfig
from sfumato.engine.inference import for_inference
from sfumato.engine.training import for_training
from sfumato.errors import UserError
from sfumato.estimate.memory import second_stage_activations
from sfumato.interop.diffusers_export import export_diffusers
from sfumato.model import LatentDiffusion
from sfumato.model_folder import load
from sfumato.pipeline import pipeline
from sfumato.pipeline.request import SampleRequest
from sfumato.training.diffusion_run import DiffusionRun
from tiny import model

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
    network, condition = build(channel_multipliers=(1, 1, 2), blocks=(1, 1, 3), head_channels=16), full_condition()
    out = network(X, TIMES, condition)
    assert out.shape == X.shape
    for i in range(B):
        one = Condition(**{name: value[i : i + 1] for name, value in condition.tensors().items()})
        torch.testing.assert_close(network(X[i : i + 1], TIMES[i : i + 1], one), out[i : i + 1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["vector", "tokens", "spatial", "timestep"])
def test_everything_given_is_used(name: str) -> None:
    network, given = build(), full_condition().tensors()
    out = network(X, TIMES, Condition(**given))
    if name == "timestep":
        changed = network(X, TIMES + 0.5, Condition(**given))
    else:
        changed = network(X, TIMES, Condition(**{**given, name: given[name] + 1}))
    assert (changed - out).abs().amax((1, 2, 3)).min() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_and_fused_networks_compute_the_same(dtype: torch.dtype) -> None:
    network, condition = build(), full_condition()
    expected = network(X, TIMES, condition).detach()
    fused = for_training(build())(X, TIMES, condition).detach()
    torch.testing.assert_close(fused, expected, atol=1e-4, rtol=1e-4)
    packed = for_inference(network, dtype)(X, TIMES, condition)
    assert packed.dtype == torch.float32
    error = (packed - expected).abs().max() / expected.abs().max()
    assert error < (1e-4 if dtype == torch.float32 else 4e-2)


def test_recomputed_activations_give_the_same_gradients_and_less_memory() -> None:
    gradients = []
    for checkpointing in (False, True):
        network = build()
        network.checkpointing = checkpointing
        network(X, TIMES, full_condition()).square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(g is not None for g in gradients[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    second = model(KIND).second
    assert second is not None
    assert second.conditioner is not None
    spec = second.conditioner.spec
    kept, recomputed = (
        second_stage_activations(second.config, (3, 16, 16), spec, 4, False, checkpointing)
        for checkpointing in (False, True)
    )
    assert recomputed < kept


def test_a_model_samples_saves_and_opens(tmp_path: Path) -> None:
    built = model(KIND)
    request = SampleRequest(prompt=["a red apple"], steps=3, guidance=2.0, seed=5)
    images = pipeline.sample(built, request).images
    built.save(tmp_path / "model")
    opened: LatentDiffusion = load(tmp_path / "model")
    assert opened.second is not None
    assert isinstance(opened.second.denoiser, ConvNeXt)
    torch.testing.assert_close(pipeline.sample(opened, request).images, images)
    with pytest.raises(UserError, match="reuse 2 keeps features of a U-Net"):
        pipeline.sample(built, SampleRequest(prompt=["a red apple"], steps=3, reuse=2))
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
