"""Writing JSON, which refuses numbers that are not finite."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from sfumato.errors import UserError


def to_json(value: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """Plain data as JSON, as `json.dumps`. Raises UserError naming the first number that is NaN or infinite."""
    try:
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)
    except ValueError:
        where = next(_not_finite(value, ""), None)
        if where is None:
            raise
        name, number = where
        raise UserError(
            f"{name or 'a result'} is {number}, not a finite number, and was not written: the weights have diverged, "
            "or their numbers are too large to compute with"
        ) from None


def _not_finite(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        if not math.isfinite(value):
            yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _not_finite(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _not_finite(item, f"{name}[{number}]")
