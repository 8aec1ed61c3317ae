"""Options declared once: name, type, range, default, group and help of every field of a request.

The command line, the service and the studio read these declarations. Importing this module, or a request's, is
fast: neither imports torch.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, Literal

from sfumato.errors import UserError

Group = Literal[
    "what to sample", "data", "training", "guidance", "sampler", "evaluation", "output", "access", "limits", "machine"
]
DECLARED = "option"


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low` to `high`; `above`, `below`: exclude that end; `whole`: integers only."""

    low: float
    high: float
    above: bool = False
    below: bool = False
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or (self.whole and isinstance(value, float)):
            return False
        inside = self.low < value if self.above else self.low <= value
        return inside and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low = f"above {self.low:,g}" if self.above else f"from {_bound(self.low)}"
        high = f"below {self.high:,g}" if self.below else f"{'up ' if self.above else ''}to {_bound(self.high)}"
        return f"a {'whole ' if self.whole else ''}number {low} {'and ' if self.below else ''}{high}"


@dataclass(frozen=True)
class Option:
    """The declaration of a field. `type` is its annotation: a type, or the name of one that is imported only where
    it is used. `range` applies to a number, and to each number of a list, a tuple or a mapping.
    """

    name: str
    type: Any
    default: Any
    group: Group
    help: str
    range: Range | None = None


def option(default: Any, group: Group, help: str, range: Range | None = None) -> Any:
    """A dataclass field that is an option; `help` is one sentence."""
    return field(default=default, metadata={DECLARED: (group, help, range)})


def needed(group: Group, help: str, range: Range | None = None) -> Any:
    """A dataclass field that is an option without a default."""
    return field(metadata={DECLARED: (group, help, range)})


def like(owner: type, name: str, default: Any = MISSING) -> Any:
    """A dataclass field declared at another dataclass: its group, range, help and, if none is given, default."""
    declared: Field[Any] = next(each for each in fields(owner) if each.name == name)
    return field(default=declared.default if default is MISSING else default, metadata=dict(declared.metadata))


def options_of(request: type) -> list[Option]:
    """The options of a dataclass, in their order."""
    options = []
    for each in fields(request):
        if DECLARED in each.metadata:
            group, text, bounds = each.metadata[DECLARED]
            default = None if each.default is MISSING else each.default
            options.append(Option(each.name, each.type, default, group, text, bounds))
    return options


def check_options(request: Any, within: str = "") -> None:
    """Raises UserError for a number outside the range of its option, also in nested options."""
    for declared in options_of(type(request)):
        value = getattr(request, declared.name)
        name = f"{within}{declared.name}".replace("_", " ")
        if declared.range is not None:
            check_number(name, value, declared.range)
        elif is_dataclass(value) and not isinstance(value, type):
            check_options(value, f"{name}.")


def check_number(name: str, value: object, bounds: Range) -> None:
    """Raises UserError for a value, or one of several, outside the range; None is not checked."""
    for each in _numbers(value):
        if each not in bounds:
            raise UserError(f"{name} is {shown(each)}: give {bounds}")


def shown(value: object) -> str:
    """A number for a message, abbreviated if long."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"about {'-' if value < 0 else ''}10^{int(value.bit_length() * math.log10(2))}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _bound(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and abs(value) < 10**12 else f"{value:g}"


def _numbers(value: object) -> list[object]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, range):
        return [value[0], value[-1]] if value else []
    return list(value) if isinstance(value, list | tuple) else [value]
