"""The state of a run: named parts <-> tensors and numbers, independent of file formats."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.training.parts import in_parts

COUNTERS = ("step", "skipped", "skipped_in_a_row", "images")
MOST = 1 << 53
"""No counter of a run, nor its seconds, comes near; greater ones do not fit into the log."""
OPTIMISERS_SLOTS = ({"momentum"}, {"step", "exp_avg", "exp_avg_sq"})
"""The tensors of a parameter: of Muon's matrices; of AdamW, and of Muon's other parameters."""
PAIRS = ("logits", "best")
"""Notes that are two numbers."""


@dataclass
class TrainState:
    """The modules (live and averaged) and optimisers of a run by name, and its counters.

    `step` counts finished optimiser steps, `skipped` those whose gradients were not finite, `images` the samples used,
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

    @property
    def in_parts(self) -> bool:
        """Whether each process has a part of the tensors, see `sharding`."""
        return any(in_parts(parameter) for module in self.modules.values() for parameter in module.parameters())

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
        return {name: getattr(self, name) for name in (*COUNTERS, "seconds", "notes")}

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Restores what `tensors` and `numbers` returned; copies all tensors, which may be parts of an open file.

        Raises KeyError, ValueError or RuntimeError if the parts differ, or a number is not one that `numbers` returns.
        """
        counters = _checked(numbers)
        known = tuple(f"module.{name}." for name in self.modules) + tuple(f"optimiser.{n}." for n in self.optimisers)
        unknown = next((key for key in tensors if not key.startswith(known)), None)
        if unknown is not None:
            raise ValueError(f"it contains {unknown!r}, which belongs to no part of the run")
        for name, module in self.modules.items():
            module.load_state_dict(_below(tensors, f"module.{name}."))
        for name, optimiser in self.optimisers.items():
            slots = _slots(optimiser, _below(tensors, f"optimiser.{name}."))
            optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
        missing = [name for name in COUNTERS if name not in counters]
        if missing:
            raise ValueError(f"its header lacks {missing[0]!r}")
        for name, value in counters.items():
            setattr(self, name, value)


def _checked(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers, if they are those of a state: known names, each with its type. Raises ValueError otherwise."""
    for name, value in numbers.items():
        if name in COUNTERS:
            fits = type(value) is int and 0 <= value < MOST
        elif name == "seconds":
            fits = _is_number(value) and 0 <= value < MOST
        elif name == "notes":
            fits = isinstance(value, dict) and all(_is_note(key, note) for key, note in value.items())
        else:
            raise ValueError(f"its header contains {name!r}, which is not a counter of a run")
        if not fits:
            raise ValueError(f"its header has {str(value)[:60]!r} as {name!r}, which no run writes")
    return dict(numbers)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_note(name: str, value: Any) -> bool:
    """Whether a note is one that the loops write: texts, numbers, lists of numbers."""
    if name == "source":
        return isinstance(value, str)
    if name in PAIRS:
        return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
    listed = value if isinstance(value, list) else [value]
    return all(_is_number(each) or (name != "loss" and isinstance(each, str | bool | None)) for each in listed)


def _slots(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """An optimiser's tensors by parameter and name. Raises ValueError for one that belongs to no parameter, and where
    a parameter has others than an optimiser keeps of it."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, slot = key.partition(".")
        if not (index.isascii() and index.isdecimal() and slot) or int(index) >= len(parameters):
            raise ValueError(f"its optimiser's {key[:60]!r} belongs to none of the {len(parameters)} parameters")
        parameter = parameters[int(index)]
        if value.dim() and value.shape != parameter.shape:
            raise ValueError(f"its optimiser's {key!r} has shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
        slots.setdefault(int(index), {})[slot] = _laid_out_as(parameter, value)
    for number, names in slots.items():
        if set(names) not in OPTIMISERS_SLOTS:
            raise ValueError(
                f"its optimiser's parameter {number} has {', '.join(sorted(names))[:80]!r}, which no optimiser keeps"
            )
    return slots


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy in the parameter's memory layout: fused optimisers ignore strides and go through both by address."""
    if value.shape != parameter.shape:
        return value.clone()
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
