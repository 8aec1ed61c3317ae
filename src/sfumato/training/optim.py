"""Learning rates as pure functions of the step, and the optimisers that use them."""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.engine.precision import Precision
from sfumato.schema import Schema
from sfumato.training.muon import Muon, is_hidden
from sfumato.training.parts import total_norm
from sfumato.training.shares import Sharing


class OptimiserConfig(Schema):
    """AdamW or Muon with warm-up and a decay; `learning_rate` is the peak."""

    method: Literal["adamw", "muon"] = "adamw"
    """muon: orthogonal updates of the hidden layers, AdamW for the rest; needs fewer steps, and a higher rate."""
    learning_rate: float = Field(1e-4, gt=0)
    warmup_steps: int = Field(100, ge=0)
    decay: Literal["constant", "cosine", "tail"] = "tail"  # tail: constant, then linear to `final` over `tail_fraction`
    tail_fraction: float = Field(0.4, gt=0, le=1)
    final: float = Field(0.02, ge=0, le=1)  # learning rate at the end of the run, as a share of the peak
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    precision: Precision = "auto"
    """Precision of Muon's matrix products. auto: bfloat16 if the processor supports it natively. Momentum and weights
    stay float32."""


def learning_rate(config: OptimiserConfig, step: int, done: float) -> float:
    """The rate of step number `step` (from 0), before which the share `done` in [0, 1] of the run is over."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    match config.decay:
        case "constant":
            shape = 1.0
        case "cosine":
            shape = config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * done))
        case "tail":
            left = min(1.0, (1 - done) / config.tail_fraction)
            shape = config.final + (1 - config.final) * left
    return config.learning_rate * warmup * shape


def build_optimiser(
    config: OptimiserConfig, *networks: nn.Module, sharing: Sharing | None = None
) -> torch.optim.Optimizer:
    """The optimiser of the networks' trainable parameters; weight decay on matrices and kernels only.

    sharing: the processes among which Muon's iterations are shared out; None: this one does all.
    """
    trainable = list(dict.fromkeys(p for network in networks for p in network.parameters() if p.requires_grad))
    hidden = _orthogonal(config, *networks)
    others = set(trainable) - set(hidden)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p in others and p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p in others and p.dim() <= 1], "weight_decay": 0.0},
    ]
    if config.method == "muon":
        return Muon(hidden, groups, config.learning_rate, config.betas, config.weight_decay, config.precision, sharing)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _orthogonal(config: OptimiserConfig, *networks: nn.Module) -> list[Tensor]:
    """The trainable weights that Muon updates; none with AdamW."""
    if config.method != "muon":
        return []
    layers = dict.fromkeys(layer for network in networks for layer in network.modules() if is_hidden(layer))
    return [layer.weight for layer in layers if layer.weight.requires_grad]


def moments(config: OptimiserConfig, *networks: nn.Module) -> int:
    """The size of the optimiser's state: two numbers for each that AdamW updates, one for each that Muon updates."""
    moved = sum(p.numel() for network in networks for p in network.parameters() if p.requires_grad)
    return 2 * moved - sum(p.numel() for p in _orthogonal(config, *networks))


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def gradients_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The 2-norm over all gradients, float32."""
    return total_norm(p.grad for p in parameters if p.grad is not None)


def read(*numbers: Tensor) -> list[float]:
    """0-d float32 tensors as numbers, in one transfer: the only place in a step where the host waits for the device."""
    values: list[float] = torch.stack([number.detach() for number in numbers]).tolist()
    return values


def clip_(parameters: Iterable[Tensor], norm: float, limit: float) -> None:
    """Scales the gradients so that their norm, already measured, is at most `limit`."""
    if norm + 1e-6 <= limit:
        return
    parameters = list(parameters)
    on_cpu = all(p.device.type == "cpu" for p in parameters)
    # float64 keeps the factor's last bit; on a GPU a factor of the gradients' own type scales all of them at once
    total_norm = torch.tensor(norm, dtype=torch.float64 if on_cpu else torch.float32)
    nn.utils.clip_grads_with_norm_(parameters, limit, total_norm)
