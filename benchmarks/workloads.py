"""Network calls and training steps of stage 2. A workload builds its candidates; the first is diffusers' default."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.networks import TOKEN_DIM, autoencoder_pair, unet_pair
from benchmarks.original import original_autoencoder, original_average, original_unet
from sfumato.autoencoder.model import AutoencoderConfig
from sfumato.conditioning.condition import Condition
from sfumato.denoiser.unet import UNetConfig
from sfumato.engine import tiles
from sfumato.engine.inference import for_inference
from sfumato.engine.precision import Precision, has_fast_bfloat16
from sfumato.engine.training import for_training
from sfumato.training.averages import ema
from sfumato.training.optim import OptimiserConfig, build_optimiser

CL = torch.channels_last
Network = Any  # diffusers' classes and ours are called by different signatures
Call = Callable[[], Tensor]
Loss = Callable[[Network], Tensor]
DEFAULT = "diffusers float32"
BEST = "diffusers channels-last"
ORIGINAL = "original float32"
BANDED = "sfumato float32, bounded"
"""Within a third of the memory that the feature maps of the whole image take."""
TOKENS = (77, TOKEN_DIM)
"""Number and width of a text's tokens in the large workloads."""
RATE, BETAS, DECAY = 1e-5, (0.9, 0.99), 0.999


@dataclass(frozen=True)
class Workload:
    """Named candidates, the first the one that the others are compared with, and what a call is."""

    candidates: dict[str, Call]
    samples: int
    """That a call works on."""
    unit: str = "calls"
    """What `samples` counts."""
    flops: float | None = None
    """Arithmetic of a call, as written down (not as rewritten by an engine); None where it is beside the point."""
    clock: Literal["cpu", "wall"] = "cpu"
    """What ratios are of: `wall` where waiting belongs to it."""


@dataclass(frozen=True)
class Scope:
    """What is to be compared besides the usual."""

    compiled: bool = False
    """torch.compile of diffusers' networks too, which takes minutes."""
    lean: bool = False
    """Only diffusers' default and its best, and ours: for networks of which many do not fit into memory."""
    half: bool = True
    """bfloat16 candidates too."""
    original: Path | None = None
    """A checkout of the original code, whose networks are compared too."""


def lean(scope: Scope) -> Scope:
    """Without the candidates that are only there for the reader's curiosity."""
    return replace(scope, lean=True)


def usual_scope(compiled: bool = False, original: Path | None = None) -> Scope:
    """On this machine: bfloat16 only where the processor multiplies it natively."""
    return Scope(compiled=compiled, half=has_fast_bfloat16(torch.device("cpu")), original=original)


def network_call(config: UNetConfig, batch: int, text: bool, scope: Scope, size: int = 32) -> Workload:
    """One U-Net call on latents (batch, 4, size, size), with 77 tokens if `text`."""
    token_dim = TOKEN_DIM if text else None
    ours, theirs = unet_pair(config, token_dim, size)
    x, t = torch.randn(batch, 4, size, size), torch.full((batch,), 500.0)
    tokens = torch.randn(batch, 77, TOKEN_DIM) if text else None

    def diffusers_call(module: Network, dtype: torch.dtype) -> Call:
        extra = () if tokens is None else (tokens.to(dtype),)
        return lambda: _without_gradients(lambda: module(x.to(dtype), t, *extra, return_dict=False)[0])

    def original_call(checkout: Path) -> Call:
        module = original_unet(checkout, ours, config, token_dim, size)
        return lambda: _without_gradients(lambda: module(x, t, tokens))

    def our_call(module: Network) -> Call:
        return lambda: _without_gradients(lambda: module(x, t, Condition(tokens=tokens)))

    return _inference(ours, theirs, diffusers_call, original_call, our_call, batch, "latents", scope)


def first_stage(size: int, decode: bool, scope: Scope) -> Workload:
    """kl-f8 decoding or encoding one image."""
    config = AutoencoderConfig()
    ours, theirs = autoencoder_pair(config, size)
    x = torch.randn(1, 4, size // 8, size // 8) if decode else torch.randn(1, 3, size, size).clamp(-1, 1)

    def diffusers_call(module: Network, dtype: torch.dtype) -> Call:
        if decode:
            return lambda: _without_gradients(lambda: module.decode(x.to(dtype), return_dict=False)[0])
        return lambda: _without_gradients(lambda: module.encode(x.to(dtype), return_dict=False)[0].parameters)

    def original_call(checkout: Path) -> Call:
        module = original_autoencoder(checkout, ours, config, size)
        return lambda: _without_gradients(lambda: module.decode(x) if decode else module.encode(x))

    def our_call(module: Network) -> Call:
        return lambda: _without_gradients(lambda: module.decode(x) if decode else module.encode(x).moments)

    banded = for_inference(copy.deepcopy(ours), torch.float32)
    bound = tiles.bytes_needed(ours, (size, size)) // 3

    def within_a_third() -> Tensor:
        return tiles.decode(banded, x, bound) if decode else tiles.encode(banded, x, bound)

    workload = _inference(ours, theirs, diffusers_call, original_call, our_call, 1, "images", scope)
    workload.candidates[BANDED] = within_a_third
    return workload


def second_stage_step(
    config: UNetConfig, batch: int, size: int, text: bool, scope: Scope, tokens_of: tuple[int, int] = TOKENS
) -> Workload:
    """Forward, backward, AdamW and the average on cached latents (batch, 4, size, size); the result is the loss.

    `tokens_of`: number and width of a text's tokens. Ours with Muon, too, which the small configurations use.
    """
    token_dim = tokens_of[1] if text else None
    ours, theirs = unet_pair(config, token_dim, size)
    plain, t = torch.randn(batch, 4, size, size), torch.randint(0, 1000, (batch,)).float()
    x = plain.contiguous(memory_format=CL)
    tokens = torch.randn(batch, *tokens_of) if text else None
    target = torch.randn(batch, 4, size, size)

    def diffusers_loss(module: Network) -> Tensor:
        extra = () if tokens is None else (tokens,)
        return (module(x, t, *extra, return_dict=False)[0].float() - target).square().mean()

    def original_loss(module: Network) -> Tensor:
        return (module(plain, t, tokens) - target).square().mean()

    def our_loss(module: Network) -> Tensor:
        return (module(x, t, Condition(tokens=tokens)).float() - target).square().mean()

    candidates = {
        DEFAULT: _their_step(copy.deepcopy(theirs), diffusers_loss, half=False, best=False),
        f"{BEST} float32": _their_step(channels_last(theirs), diffusers_loss, half=False, best=True),
    }
    if scope.half:
        candidates[f"{BEST} bf16"] = _their_step(channels_last(theirs), diffusers_loss, half=True, best=True)
    if scope.compiled:
        compiled = channels_last(theirs)
        compiled.compile()
        candidates["diffusers compiled"] = _their_step(compiled, diffusers_loss, half=scope.half, best=True)
    if scope.original:
        module = original_unet(scope.original, ours, config, token_dim, size)
        candidates[ORIGINAL] = _original_step(module, original_loss, original_average(scope.original, module, DECAY))
    candidates["sfumato float32"] = _our_step(for_training(copy.deepcopy(ours)), our_loss, half=False)
    if scope.half:
        candidates["sfumato bf16"] = _our_step(for_training(copy.deepcopy(ours)), our_loss, half=True)
    if tokens_of != TOKENS:
        for half in (False, True) if scope.half else (False,):
            kind = "bf16" if half else "float32"
            module = for_training(copy.deepcopy(ours))
            candidates[f"sfumato {kind}, Muon"] = _our_step(module, our_loss, half, "muon")
    return Workload(candidates, batch, "latents", 3 * count_flops(lambda: our_loss(ours)))


def _without_gradients(call: Call) -> Tensor:
    with torch.no_grad():
        return call()


def _inference(
    ours: Network,
    theirs: Network,
    diffusers_call: Callable[[Network, torch.dtype], Call],
    original_call: Callable[[Path], Call],
    our_call: Callable[[Network], Call],
    samples: int,
    unit: str,
    scope: Scope,
) -> Workload:
    full, half = torch.float32, torch.bfloat16
    flops = count_flops(diffusers_call(theirs, full))
    candidates = {DEFAULT: diffusers_call(theirs, full)}
    if not scope.lean:
        candidates[f"{BEST} float32"] = diffusers_call(channels_last(theirs), full)
    if scope.half:
        candidates[f"{BEST} bf16"] = diffusers_call(channels_last(theirs, half), half)
    if scope.compiled:
        for dtype in (full, half)[: 1 + scope.half]:
            name = "float32" if dtype is full else "bf16"
            candidates[f"diffusers compiled {name}"] = diffusers_call(_compiled(channels_last(theirs, dtype)), dtype)
    if scope.original:
        candidates[ORIGINAL] = original_call(scope.original)
    if not scope.lean:
        candidates["sfumato plain float32"] = our_call(copy.deepcopy(ours))
    if scope.half:
        candidates["sfumato bf16"] = our_call(for_inference(copy.deepcopy(ours), half))
    candidates["sfumato float32"] = our_call(for_inference(ours, full))  # last: it uses the network up
    return Workload(candidates, samples, unit, flops)


def channels_last(module: Network, dtype: torch.dtype = torch.float32) -> Network:
    """A copy in the layout that the convolution library prefers."""
    return copy.deepcopy(module).to(dtype).to(memory_format=CL)


def _compiled(module: Network) -> Network:
    """Compiled with its weights as constants, what diffusers advises for the CPU."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    if hasattr(module, "encoder"):
        module.encoder.compile()
        module.decoder.compile()
    else:
        module.compile()
    return module


def _their_step(module: Network, loss: Loss, half: bool, best: bool) -> Call:
    """One training step as diffusers' scripts write it; fused and with foreach, which they leave off, if `best`."""
    from diffusers.training_utils import EMAModel

    module.train()
    parameters = list(module.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=RATE, betas=BETAS, fused=best or None)
    average = EMAModel(parameters, decay=DECAY, foreach=best)
    return _step(module, loss, half, optimiser, lambda: average.step(parameters))


def _original_step(module: Network, loss: Loss, average: Callable[[], None]) -> Call:
    """One training step as the original writes it; checkpointed layers compute their forward pass twice."""
    module.train()
    optimiser = torch.optim.AdamW(module.parameters(), lr=RATE, betas=BETAS)
    return _step(module, loss, False, optimiser, average)


def _our_step(module: Network, loss: Loss, half: bool, method: Literal["adamw", "muon"] = "adamw") -> Call:
    """One training step as the loops write it; Muon multiplies in bfloat16 if `half`."""
    module.train()
    shadow = ema.average_of(module)
    precision: Precision = "bfloat16" if half else "float32"
    config = OptimiserConfig(method=method, learning_rate=RATE, betas=BETAS, precision=precision)
    optimiser = build_optimiser(config, module)
    return _step(module, loss, half, optimiser, lambda: ema.update(shadow, module, DECAY))


def _step(
    module: Network, loss: Loss, half: bool, optimiser: torch.optim.Optimizer, average: Callable[[], None]
) -> Call:
    """With autocast to bf16 if `half`; returns the loss before the update."""

    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            value = loss(module)
        value.backward()
        optimiser.step()
        average()
        optimiser.zero_grad(set_to_none=True)
        return value

    return step


def count_flops(call: Call) -> float:
    """Multiplications and additions of one forward call, as written down."""
    with FlopCounterMode(display=False) as counter:
        _without_gradients(call)
    return float(counter.get_total_flops())
