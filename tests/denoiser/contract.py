"""The contract of every denoiser, whatever its network: inputs, weights, and checks for the tests of each."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.conditioning.condition import Condition, ConditionSpec
from sfumato.engine.inference import for_inference
from sfumato.errors import UserError
from sfumato.estimate.memory import second_stage_activations
from sfumato.model import LatentDiffusion
from sfumato.model_folder import load
from sfumato.pipeline import pipeline
from sfumato.pipeline.request import SampleRequest
from tiny import model

B, C, H, W = 3, 4, 8, 12
FULL = ConditionSpec(vector_dim=5, token_dim=6, spatial_channels=2)
GIVEN = ("vector", "tokens", "spatial", "timestep")
PROMPT = ["a red apple"]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, TIMES = gaussian(B, C, H, W, seed=3), torch.tensor([0.0, 37.5, 999.0])


def filled(module: nn.Module) -> nn.Module:
    """With random weights everywhere, for zero-initialised layers hide what is behind them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter.shape[1:].numel() ** -0.5 if parameter.dim() > 1 else 0.2
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return module


def full_condition() -> Condition:
    mask = torch.ones(B, 7, dtype=torch.bool)
    mask[0, 3:] = False
    return Condition(gaussian(B, 5), gaussian(B, 7, 6, seed=1), mask, gaussian(B, 2, H, W, seed=2))


def check_each_sample_stands_alone(network: nn.Module) -> None:
    """A sample's prediction is the same in a batch and alone."""
    condition = full_condition()
    out = network(X, TIMES, condition)
    assert out.shape == X.shape
    for i in range(B):
        one = Condition(**{name: value[i : i + 1] for name, value in condition.tensors().items()})
        torch.testing.assert_close(network(X[i : i + 1], TIMES[i : i + 1], one), out[i : i + 1], atol=1e-4, rtol=1e-4)


def check_is_used(network: nn.Module, name: str) -> None:
    """Every sample's prediction changes with the given one of GIVEN."""
    given = full_condition().tensors()
    out = network(X, TIMES, Condition(**given))
    if name == "timestep":
        changed = network(X, TIMES + 0.5, Condition(**given))
    else:
        changed = network(X, TIMES, Condition(**{**given, name: given[name] + 1}))
    assert (changed - out).abs().amax((1, 2, 3)).min() > 1e-4


def check_fused_and_packed(network: nn.Module, fused: nn.Module, dtype: torch.dtype) -> None:
    """The network as training fuses it, and packed for inference in `dtype`, which ends it, computes the same."""
    condition = full_condition()
    expected = network(X, TIMES, condition).detach()
    torch.testing.assert_close(fused(X, TIMES, condition).detach(), expected, atol=1e-4, rtol=1e-4)
    packed = for_inference(network, dtype)(X, TIMES, condition)
    assert packed.dtype == torch.float32
    error = (packed - expected).abs().max() / expected.abs().max()
    assert error < (1e-4 if dtype == torch.float32 else 4e-2)


def check_gradients(network: nn.Module, other: nn.Module, **tolerance: Any) -> None:
    """Every parameter of both has a gradient, and the same one."""
    gradients = []
    for each in (network, other):
        each.zero_grad()
        each(X, TIMES, full_condition()).square().mean().backward()
        gradients.append([p.grad for p in each.parameters()])
    assert all(g is not None for g in gradients[0])
    for one, another in zip(*gradients, strict=True):
        torch.testing.assert_close(one, another, **tolerance)


def check_recomputing_is_estimated(kind: str) -> None:
    """The estimate of a training has less memory where activations are recomputed; `kind` is an override."""
    second = model(kind).second
    assert second is not None
    assert second.conditioner is not None
    spec = second.conditioner.spec
    kept, recomputed = (
        second_stage_activations(second.config, (3, 16, 16), spec, 4, False, checkpointing)
        for checkpointing in (False, True)
    )
    assert recomputed < kept


def check_samples_saves_and_opens(kind: str, network: type[nn.Module], folder: Path) -> LatentDiffusion:
    """A model of the `kind` samples, and alike once saved and opened; returns the opened one."""
    built = model(kind)
    request = SampleRequest(prompt=PROMPT, steps=3, guidance=2.0, seed=5)
    images = pipeline.sample(built, request).images
    built.save(folder)
    opened = load(folder)
    assert opened.second is not None
    assert isinstance(opened.second.denoiser, network)
    torch.testing.assert_close(pipeline.sample(opened, request).images, images)
    with pytest.raises(UserError, match="reuse 2 keeps features of a U-Net"):
        pipeline.sample(built, SampleRequest(prompt=PROMPT, steps=3, reuse=2))
    return opened
