"""An exponential moving average of a network's parameters, kept beside it and never swapped in by stealth."""

import copy

import torch
from torch import nn


def average_of(module: nn.Module) -> nn.Module:
    """A frozen copy of the module to hold its average."""
    shadow = copy.deepcopy(module).eval()
    for parameter in shadow.parameters():
        parameter.requires_grad_(False)
    return shadow


def decay_at(step: int, decay: float) -> float:
    """The original's warm-up: min(decay, (1 + n) / (10 + n)) after n updates."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update(shadow: nn.Module, module: nn.Module, decay: float) -> None:
    """shadow ← decay · shadow + (1 − decay) · module, parameter by parameter of the same name; buffers are copied."""
    ours, theirs = dict(shadow.named_parameters()), dict(module.named_parameters())
    torch._foreach_lerp_(list(ours.values()), [theirs[name].detach() for name in ours], 1 - decay)
    live = dict(module.named_buffers())
    for name, buffer in shadow.named_buffers():
        buffer.copy_(live[name])
