"""Moving averages of a network's parameters, held in a separate copy of it.

The classical average decays exponentially. Power-function averages (Karras et al. 2024, EDM2, section 3) always span
the same share of the training so far; any other width can be computed afterwards from snapshots of two (`posthoc`).
"""

from typing import Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.schema import Schema
from sfumato.training.parts import copied, local

M = TypeVar("M", bound=nn.Module)
WIDEST = 0.28
"""A profile of constant height has the relative width 0.289; wider ones favour the beginning."""


class PowerAverages(Schema):
    """Power-function averages, saved from time to time, so that the width can be chosen after training."""

    widths: tuple[float, ...] = Field((0.05, 0.1), min_length=1)
    """Standard deviation of each profile over the length of the training (EDM2's sigma_rel), 0.01 to 0.28."""
    snapshot_every: int = Field(500, ge=1)
    """Steps between two snapshots, which store the averages in half precision."""
    snapshots: int = Field(32, ge=2)
    """Maximum number of snapshots per width; beyond it every second one is deleted and the interval doubles."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for width in self.widths:
            if not 0.01 <= width <= WIDEST:
                raise ValueError(f"widths: {width:g} is outside 0.01 to {WIDEST:g}, shares of the training's length")
        if len(set(self.widths)) != len(self.widths):
            raise ValueError("widths: each may occur once")
        return self


def average_of(module: M) -> M:
    """A copy of the module for its average; what is not trained is shared with the module, not copied.

    Shared is every parameter without gradients, and every buffer of a part that has only such parameters: a pretrained
    text encoder takes its memory once, however many averages there are.
    """
    shadow = copied(module, _untrained(module)).eval()
    for parameter in shadow.parameters():
        parameter.requires_grad_(False)
    return shadow


def _untrained(module: nn.Module) -> list[Tensor]:
    """The parameters without gradients, and the buffers of parts that have only such parameters."""
    tensors: list[Tensor] = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    for part in module.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            tensors += part.buffers()
    return tensors


def power_averages_of(module: nn.Module, config: PowerAverages | None) -> nn.ModuleList:
    """One such copy for each width; none without a configuration."""
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

    The first update copies the network (Karras et al. 2024, section 3.1).
    """
    return float((1 - 1 / update) ** (exponent_of_width(width) + 1))


@torch.no_grad()
def update(shadow: nn.Module, module: nn.Module, decay: float) -> None:
    """shadow ← decay · shadow + (1 − decay) · module, parameter by parameter of the same name; buffers are copied.

    What the two share is unchanged. Of parameters in parts each process updates its own.
    """
    theirs = dict(module.named_parameters())
    pairs = [(own, theirs[name]) for name, own in shadow.named_parameters() if own is not theirs[name]]
    torch._foreach_lerp_([local(own) for own, _ in pairs], [local(live.detach()) for _, live in pairs], 1 - decay)
    buffers = dict(module.named_buffers())
    for name, own in shadow.named_buffers():
        if own is not buffers[name]:
            own.copy_(buffers[name])


def update_powers(shadows: nn.ModuleList, module: nn.Module, config: PowerAverages | None, update_number: int) -> None:
    """Updates each power-function average with the network; `update_number` counts from 1."""
    for shadow, width in zip(shadows, config.widths if config is not None else (), strict=True):
        update(shadow, module, power_decay_at(update_number, width))
