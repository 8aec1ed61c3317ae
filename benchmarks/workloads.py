"""What is timed. A workload builds its candidates; the first is diffusers' default, float32 eager."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.networks import TOKEN_DIM, W1, W2, autoencoder_pair, unet_pair
from sfumato.autoencoder.model import AutoencoderConfig
from sfumato.conditioning.condition import Condition
from sfumato.denoiser.unet import UNetConfig
from sfumato.engine.inference import for_inference
from sfumato.engine.training import for_training

CL = torch.channels_last
Network = Any  # diffusers' classes and ours are called by different signatures
Call = Callable[[], Tensor]
Loss = Callable[[Network], Tensor]
DEFAULT = "diffusers float32"


@dataclass(frozen=True)
class Workload:
    """Named candidates and the arithmetic of one call."""

    candidates: dict[str, Call]
    flops: float


def network_call(config: UNetConfig, batch: int, text: bool) -> Workload:
    """One U-Net call on latents (batch, 4, 32, 32), with 77 tokens if `text`."""
    ours, theirs = unet_pair(config, TOKEN_DIM if text else None, 32)
    x, t = torch.randn(batch, 4, 32, 32), torch.full((batch,), 500.0)
    tokens = torch.randn(batch, 77, TOKEN_DIM) if text else None

    def diffusers_call(module: Network, dtype: torch.dtype) -> Call:
        extra = () if tokens is None else (tokens.to(dtype),)
        return lambda: _without_gradients(lambda: module(x.to(dtype), t, *extra, return_dict=False)[0])

    def our_call(module: Network) -> Call:
        return lambda: _without_gradients(lambda: module(x, t, Condition(tokens=tokens)))

    return _inference(ours, theirs, diffusers_call, our_call)


def first_stage(size: int, decode: bool) -> Workload:
    """kl-f8 decoding or encoding one picture."""
    ours, theirs = autoencoder_pair(AutoencoderConfig(), size)
    x = torch.randn(1, 4, size // 8, size // 8) if decode else torch.randn(1, 3, size, size).clamp(-1, 1)

    def diffusers_call(module: Network, dtype: torch.dtype) -> Call:
        if decode:
            return lambda: _without_gradients(lambda: module.decode(x.to(dtype), return_dict=False)[0])
        return lambda: _without_gradients(lambda: module.encode(x.to(dtype), return_dict=False)[0].parameters)

    def our_call(module: Network) -> Call:
        return lambda: _without_gradients(lambda: module.decode(x) if decode else module.encode(x).moments)

    return _inference(ours, theirs, diffusers_call, our_call)


def second_stage_step(config: UNetConfig, batch: int, size: int, text: bool) -> Workload:
    """Forward, backward and fused AdamW on cached latents (batch, 4, size, size); the result is the loss."""
    ours, theirs = unet_pair(config, TOKEN_DIM if text else None, size)
    x, t = torch.randn(batch, 4, size, size), torch.randint(0, 1000, (batch,)).float()
    x = x.contiguous(memory_format=CL)
    tokens = torch.randn(batch, 77, TOKEN_DIM) if text else None
    target = torch.randn(batch, 4, size, size)

    def diffusers_loss(module: Network) -> Tensor:
        extra = () if tokens is None else (tokens,)
        return (module(x, t, *extra, return_dict=False)[0].float() - target).square().mean()

    def our_loss(module: Network) -> Tensor:
        return (module(x, t, Condition(tokens=tokens)).float() - target).square().mean()

    return _training(ours, theirs, our_loss, diffusers_loss)


def first_stage_step(channels: int, batch: int, size: int) -> Workload:
    """Forward, backward and fused AdamW of a small autoencoder (f = 4) on (batch, 3, size, size), L1 alone."""
    ours, theirs = autoencoder_pair(AutoencoderConfig(channels=channels, channel_multipliers=(1, 2, 4)), size)
    x = torch.rand(batch, 3, size, size).contiguous(memory_format=CL) * 2 - 1

    def diffusers_loss(module: Network) -> Tensor:
        latent = module.encode(x, return_dict=False)[0].mean
        return (module.decode(latent, return_dict=False)[0].float() - x).abs().mean()

    def our_loss(module: Network) -> Tensor:
        return (module.decode(module.encode(x).z).float() - x).abs().mean()

    return _training(ours, theirs, our_loss, diffusers_loss)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "W1 call": lambda: network_call(W1, 1, text=False),
    "W2 guided call": lambda: network_call(W2, 2, text=True),
    "W3 decode 256": lambda: first_stage(256, decode=True),
    "W3 encode 256": lambda: first_stage(256, decode=False),
    "W4 step, W1 batch 8": lambda: second_stage_step(W1, 8, 32, text=False),
    "W4 step, W2 batch 8": lambda: second_stage_step(W2, 8, 32, text=True),
    "W4 step, small batch 64": lambda: second_stage_step(UNetConfig(channels=64), 64, 16, text=False),
    "W5 step, 64 pixels batch 16": lambda: first_stage_step(32, 16, 64),
}


def _without_gradients(call: Call) -> Tensor:
    with torch.no_grad():
        return call()


def _inference(
    ours: Network,
    theirs: Network,
    diffusers_call: Callable[[Network, torch.dtype], Call],
    our_call: Callable[[Network], Call],
) -> Workload:
    full, half = torch.float32, torch.bfloat16
    reference = diffusers_call(theirs, full)
    candidates = {
        DEFAULT: reference,
        "diffusers float32 channels-last": diffusers_call(copy.deepcopy(theirs).to(memory_format=CL), full),
        "diffusers bf16 channels-last": diffusers_call(copy.deepcopy(theirs).to(half).to(memory_format=CL), half),
        "sfumato plain float32": our_call(ours),
        "sfumato float32": our_call(for_inference(copy.deepcopy(ours), full)),
        "sfumato bf16": our_call(for_inference(copy.deepcopy(ours), half)),
    }
    return Workload(candidates, _count(reference))


def _training(ours: Network, theirs: Network, our_loss: Loss, diffusers_loss: Loss) -> Workload:
    counted = copy.deepcopy(ours)
    candidates = {
        DEFAULT: _step(copy.deepcopy(theirs), diffusers_loss, half=False),
        "diffusers float32 channels-last": _step(
            copy.deepcopy(theirs).to(memory_format=CL), diffusers_loss, half=False
        ),
        "diffusers bf16 channels-last": _step(theirs.to(memory_format=CL), diffusers_loss, half=True),
        "sfumato float32": _step(for_training(copy.deepcopy(ours)), our_loss, half=False),
        "sfumato bf16": _step(for_training(ours), our_loss, half=True),
    }
    return Workload(candidates, 3 * _count(lambda: our_loss(counted)))


def _step(module: Network, loss: Loss, half: bool) -> Call:
    """One training step with autocast to bf16 if `half`; returns the loss before it."""
    module.train()
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True)

    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            value = loss(module)
        value.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return value

    return step


def _count(call: Call) -> float:
    """Multiplications and additions of one forward call, as written down (not as rewritten by an engine)."""
    with FlopCounterMode(display=False) as counter:
        _without_gradients(call)
    return float(counter.get_total_flops())
