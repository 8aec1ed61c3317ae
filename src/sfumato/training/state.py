"""What a run must remember: named parts <-> tensors and numbers. Knows no file formats."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class TrainState:
    """The modules (live and averaged) and optimisers of a run by name, and its counters.

    `step` counts finished optimiser steps, `skipped` those whose gradients were not finite, `images` the samples seen,
    `seconds` the training time over all sessions of the run. `stopped_by` is the signal that ended this session, 0 for
    none; it is not saved.
    """

    modules: dict[str, nn.Module]
    optimisers: dict[str, torch.optim.Optimizer]
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    images: int = 0
    seconds: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)
    stopped_by: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, under `module.NAME.key` or `optimiser.NAME.index.key`."""
        out: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            out |= {f"module.{name}.{key}": value for key, value in module.state_dict().items()}
        for name, optimiser in self.optimisers.items():
            for index, slots in optimiser.state_dict()["state"].items():
                out |= {f"optimiser.{name}.{index}.{key}": torch.as_tensor(value) for key, value in slots.items()}
        return out

    def numbers(self) -> dict[str, Any]:
        """The counters."""
        names = ("step", "skipped", "skipped_in_a_row", "images", "seconds", "notes")
        return {name: getattr(self, name) for name in names}

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Restores what `tensors` and `numbers` gave. Raises KeyError or RuntimeError where the parts differ."""
        for name, module in self.modules.items():
            module.load_state_dict(_below(tensors, f"module.{name}."))
        for name, optimiser in self.optimisers.items():
            parameters = [p for group in optimiser.param_groups for p in group["params"]]
            slots: dict[int, dict[str, Tensor]] = {}
            for key, value in _below(tensors, f"optimiser.{name}.").items():
                index, slot = key.split(".", 1)
                slots.setdefault(int(index), {})[slot] = _laid_out_as(parameters[int(index)], value)
            optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
        for name, value in numbers.items():
            setattr(self, name, value)


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A moment in its parameter's memory order: fused optimisers walk both by address, whatever their strides say."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
