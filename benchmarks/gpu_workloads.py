"""What `benchmarks.gpu` times: the same weights, inputs and results on both sides, at any place.

The first candidate of a network is what diffusers does by itself, float32 with torch's defaults (convolutions in TF32),
the second what its documentation advises on a GPU: bfloat16 weights, channels-last.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import TOKEN_DIM, autoencoder_pair, unet_pair
from benchmarks.sampling_loops import DDIM, our_loop, their_loop
from benchmarks.workloads import BETAS, CL, DECAY, RATE, channels_last, count_flops
from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig
from sfumato.conditioning.condition import Condition
from sfumato.denoiser.unet import UNet, UNetConfig
from sfumato.engine.inference import PackedUNet, for_inference
from sfumato.engine.recorded_step import Named, RecordedGradients, recordable
from sfumato.engine.training import for_training
from sfumato.pipeline.denoise import Guidance
from sfumato.training.averages import ema
from sfumato.training.optim import OptimiserConfig, build_optimiser, clip_, gradients_norm, read

Call = Callable[[], Tensor]
Network = Any  # diffusers' classes and ours are called by different signatures
DEFAULT, ADVISED = "diffusers float32", "diffusers bf16, channels-last"
FULL, HALF = torch.float32, torch.bfloat16
TOKENS = 77
CLIP = 1.0
GUIDANCE = 3.0


@dataclass(frozen=True)
class Timed:
    """Named candidates, what a call works on, and its arithmetic as written down; None where it is beside the point."""

    candidates: dict[str, Call]
    samples: int
    unit: str
    flops: float | None = None


@dataclass(frozen=True)
class Given:
    """Inputs of a U-Net's call: x (B, 4, size, size), t (B,), tokens (B, 77, 768) or None."""

    x: Tensor
    t: Tensor
    tokens: Tensor | None

    @property
    def condition(self) -> Condition:
        return Condition(tokens=self.tokens)

    def theirs(self, module: Network, dtype: torch.dtype) -> Tensor:
        """diffusers' call, inputs in its type."""
        extra = () if self.tokens is None else (self.tokens.to(dtype),)
        out: Tensor = module(self.x.to(dtype), self.t, *extra, return_dict=False)[0]
        return out


def given(batch: int, size: int, text: bool, device: torch.device) -> Given:
    """Random inputs at one time."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 4, size, size, generator=g).to(device).contiguous(memory_format=CL)
    tokens = torch.randn(batch, TOKENS, TOKEN_DIM, generator=g).to(device) if text else None
    return Given(x, torch.full((batch,), 500.0, device=device), tokens)


@lru_cache(maxsize=1)
def networks(config: UNetConfig, text: bool, size: int, device: torch.device) -> tuple[UNet, nn.Module]:
    """The pair of the workloads that follow one another; they take copies."""
    return unet_pair(config, TOKEN_DIM if text else None, size, device)


def call(config: UNetConfig, batch: int, text: bool, size: int, device: torch.device) -> Timed:
    """One U-Net call; `batch` holds both halves where it is guided."""
    ours, theirs = networks(config, text, size, device)
    inputs = given(batch, size, text, device)
    advised = channels_last(theirs, HALF)
    fast, full = for_inference(copy.deepcopy(ours), HALF), for_inference(copy.deepcopy(ours), FULL)
    candidates: dict[str, Call] = {
        DEFAULT: lambda: inputs.theirs(theirs, FULL),
        ADVISED: lambda: inputs.theirs(advised, HALF),
        "sfumato float32": lambda: full(inputs.x, inputs.t, inputs.condition),
        "sfumato bf16, not recorded": lambda: PackedUNet.forward(fast, inputs.x, inputs.t, inputs.condition),
        "sfumato bf16": lambda: fast(inputs.x, inputs.t, inputs.condition),
    }
    quiet = {name: without_gradients(made) for name, made in candidates.items()}
    return Timed(quiet, batch, "latents", count_flops(candidates[DEFAULT]))


def first_stage(config: AutoencoderConfig, size: int, decode: bool, device: torch.device) -> Timed:
    """Decoding or encoding one image."""
    ours, theirs = autoencoder_pair(config, size, device)
    shape = (1, 4, size // config.factor, size // config.factor) if decode else (1, 3, size, size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).clamp(-1, 1).to(device)

    def diffusers_call(module: Network, dtype: torch.dtype) -> Tensor:
        if decode:
            return module.decode(x.to(dtype), return_dict=False)[0]
        return module.encode(x.to(dtype), return_dict=False)[0].parameters

    def our_call(module: Autoencoder) -> Tensor:
        return module.decode(x) if decode else module.encode(x).moments

    advised = channels_last(theirs, HALF)
    full, half = for_inference(copy.deepcopy(ours), FULL), for_inference(copy.deepcopy(ours), HALF)
    candidates: dict[str, Call] = {
        DEFAULT: lambda: diffusers_call(theirs, FULL),
        ADVISED: lambda: diffusers_call(advised, HALF),
        "sfumato float32": lambda: our_call(full),
        "sfumato bf16": lambda: our_call(half),
    }
    quiet = {name: without_gradients(made) for name, made in candidates.items()}
    return Timed(quiet, 1, "images", count_flops(candidates[DEFAULT]))


def step(config: UNetConfig, batch: int, text: bool, size: int, device: torch.device) -> Timed:
    """A training step: forward and backward in autocast, clipping, AdamW, average; the result is the loss."""
    ours, theirs = networks(config, text, size, device)
    inputs = given(batch, size, text, device)
    target = torch.randn(inputs.x.shape, generator=torch.Generator().manual_seed(2)).to(device)

    def their_loss(module: Network) -> Tensor:
        return (inputs.theirs(module, FULL).float() - target).square().mean()

    def our_loss(module: Network) -> Tensor:
        return (module(inputs.x, inputs.t, inputs.condition).float() - target).square().mean()

    candidates = {
        "diffusers bf16 autocast": their_step(copy.deepcopy(theirs), their_loss, best=False),
        "diffusers, fused, foreach, channels-last": their_step(channels_last(theirs), their_loss, best=True),
        "sfumato bf16 autocast, not recorded": our_step(for_training(copy.deepcopy(ours)), our_loss, recorded=False),
        "sfumato bf16 autocast": our_step(for_training(copy.deepcopy(ours)), our_loss, recorded=recordable(device)),
    }
    return Timed(candidates, batch, "latents", 3 * count_flops(lambda: inputs.theirs(theirs, FULL)))


def their_step(module: Network, loss: Callable[[Network], Tensor], best: bool) -> Call:
    """As diffusers' scripts write it; fused and with foreach, which they leave off, if `best`."""
    from diffusers.training_utils import EMAModel

    module.train()
    parameters = list(module.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=RATE, betas=BETAS, fused=best or None)
    average = EMAModel(parameters, decay=DECAY, foreach=best)

    def made() -> Tensor:
        with torch.autocast(parameters[0].device.type, HALF):
            value = loss(module)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        average.step(parameters)
        return value

    return made


def our_step(module: Network, loss: Callable[[Network], Tensor], recorded: bool) -> Call:
    """As the loop of stage 2 writes it, with its one wait for the device."""
    module.train()
    shadow = ema.average_of(module)
    parameters = list(module.parameters())
    optimiser = build_optimiser(OptimiserConfig(learning_rate=RATE, betas=BETAS), module)

    def learn(_: Named) -> Tensor:
        with torch.autocast(parameters[0].device.type, HALF):
            value = loss(module)
        value.backward()
        return value.detach()

    gradients = RecordedGradients(learn, parameters) if recorded else learn

    def made() -> Tensor:
        value = gradients({})
        norm, _ = read(gradients_norm(parameters), value)
        clip_(parameters, norm, CLIP)
        optimiser.step()
        ema.update(shadow, module, DECAY)
        optimiser.zero_grad(set_to_none=True)
        return value

    return made


def sampling(
    config: UNetConfig, autoencoder: AutoencoderConfig, batch: int, size: int, steps: int, device: torch.device
) -> Timed:
    """Guided DDIM from noise to images, as the pipelines of diffusers and `sfumato sample` do it."""
    ours, theirs = networks(config, True, size, device)
    first, their_first = autoencoder_pair(autoencoder, size * autoencoder.factor, device)
    inputs = given(batch, size, True, device)
    tokens = inputs.tokens
    assert tokens is not None
    fast = for_inference(copy.deepcopy(ours), HALF)
    decoder = for_inference(copy.deepcopy(first), HALF)
    advised = channels_last(theirs, HALF), channels_last(their_first, HALF)

    def our_way(recorded: bool) -> Tensor:
        unet = fast if recorded else _Unrecorded(fast)
        return decoder.decode(our_loop(unet, inputs.x, tokens, steps, DDIM, Guidance(GUIDANCE)))

    def their_way(unet: Network, autoencoder: Network, dtype: torch.dtype) -> Tensor:
        latent = their_loop(unet, inputs.x.to(dtype), tokens.to(dtype), steps, GUIDANCE)
        image: Tensor = autoencoder.decode(latent / autoencoder.config.scaling_factor, return_dict=False)[0]
        return image

    candidates: dict[str, Call] = {
        DEFAULT: lambda: their_way(theirs, their_first, FULL),
        ADVISED: lambda: their_way(*advised, HALF),
        "sfumato bf16, not recorded": lambda: our_way(recorded=False),
        "sfumato bf16": lambda: our_way(recorded=True),
    }
    return Timed({name: without_gradients(made) for name, made in candidates.items()}, batch, "images")


class _Unrecorded(nn.Module):
    """A network made for inference, each kernel launched by itself."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        assert isinstance(self.unet, PackedUNet)
        return PackedUNet.forward(self.unet, x_t, timestep, condition)


def without_gradients(made: Call) -> Call:
    """The call under no_grad."""

    def quiet() -> Tensor:
        with torch.no_grad():
            return made()

    return quiet
