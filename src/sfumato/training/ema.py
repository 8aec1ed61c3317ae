"""Moving averages of a network's parameters, kept beside it and never swapped in by stealth.

The classical average forgets exponentially. Power-function averages (Karras et al. 2024, EDM2, section 3) always span
the same share of the training so far; snapshots of two of them give any other afterwards (`sfumato.training.posthoc`).
"""

import copy
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import nn

from sfumato.schema import Schema

WIDEST = 0.28
"""Profiles of constant height have the relative width 0.289; beyond lie those that favour the beginning."""


class PowerAverages(Schema):
    """Averages by power-function profiles, written down now and then, to choose the width after the training."""

    widths: tuple[float, ...] = Field((0.05, 0.1), min_length=1)
    """Standard deviation of each profile over the length of the training (EDM2's sigma_rel), 0.01 to 0.28."""
    snapshot_every: int = Field(500, ge=1)
    """Steps between two snapshots, which hold the averages in half precision."""
    snapshots: int = Field(32, ge=2)
    """The most that are kept of each width; then every second one goes, and the steps between them double."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for width in self.widths:
            if not 0.01 <= width <= WIDEST:
                raise ValueError(f"widths: {width:g} is outside 0.01 to {WIDEST:g}, shares of the training's length")
        if len(set(self.widths)) != len(self.widths):
            raise ValueError("widths: each may be there once")
        return self


def average_of(module: nn.Module) -> nn.Module:
    """A frozen copy of the module to hold its average."""
    shadow = copy.deepcopy(module).eval()
    for parameter in shadow.parameters():
        parameter.requires_grad_(False)
    return shadow


def power_averages_of(module: nn.Module, config: PowerAverages | None) -> nn.ModuleList:
    """One frozen copy for each width; none without a configuration."""
    return nn.ModuleList([average_of(module) for _ in (config.widths if config is not None else ())])


def decay_at(update: int, decay: float) -> float:
    """The decay of update number `update`, from 1: the original's warm-up, min(decay, (1 + n) / (10 + n))."""
    return min(decay, (1 + update) / (10 + update))


def exponent_of_width(width: float) -> float:
    """gamma of the profile p(tau) ∝ tau^gamma whose standard deviation is `width` of its length, 0 < width < 0.289.

    The largest root of gamma³ + 7 gamma² + (16 - w⁻²) gamma + (12 - w⁻²) = 0, found by bisection: the relative width
    sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)) falls with gamma (Karras et al. 2024, section 3.1 and Algorithm 2).
    """
    low, high = 0.0, 1 / width**2
    for _ in range(200):
        middle = (low + high) / 2
        too_wide = (middle + 1) ** 0.5 / ((middle + 2) * (middle + 3) ** 0.5) > width
        low, high = (middle, high) if too_wide else (low, middle)
    return (low + high) / 2


def power_decay_at(update: int, width: float) -> float:
    """The decay of update number `update`, from 1, under the profile of this width: (1 - 1/n)^(gamma + 1).

    The first update takes the network as it is (Karras et al. 2024, section 3.1).
    """
    return float((1 - 1 / update) ** (exponent_of_width(width) + 1))


@torch.no_grad()
def update(shadow: nn.Module, module: nn.Module, decay: float) -> None:
    """shadow ← decay · shadow + (1 − decay) · module, parameter by parameter of the same name; buffers are copied."""
    ours, theirs = dict(shadow.named_parameters()), dict(module.named_parameters())
    torch._foreach_lerp_(list(ours.values()), [theirs[name].detach() for name in ours], 1 - decay)
    live = dict(module.named_buffers())
    for name, buffer in shadow.named_buffers():
        buffer.copy_(live[name])


def update_powers(shadows: nn.ModuleList, module: nn.Module, config: PowerAverages | None, update_number: int) -> None:
    """Takes the network into each power-function average; `update_number` counts from 1."""
    for shadow, width in zip(shadows, config.widths if config is not None else (), strict=True):
        update(shadow, module, power_decay_at(update_number, width))


def snapshot_due(config: PowerAverages | None, step: int, last: bool) -> bool:
    """Whether the averages are written down after this step."""
    return config is not None and (step % config.snapshot_every == 0 or last)
