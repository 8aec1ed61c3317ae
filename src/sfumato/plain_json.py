"""Writing and reading JSON, which refuses numbers that are not finite and whatever has two meanings."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

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


def from_json(text: str) -> Any:
    """The value of a foreign JSON text, which `to_json` can write again.

    Raises:
        ValueError: for anything that is not JSON, a key that occurs twice in one object, a number that is not finite,
            an integer of thousands of digits, half of a surrogate pair, and nesting beyond what Python can follow.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is not a character") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    return value


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in items:
        if key in made:
            raise ValueError(f"has the key {key[:80]!r} twice: keep one of them")
        made[key] = value
    return made


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _no_constant(digits[:20])


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"holds {name}, which is not a JSON number")


def numbers_in(file: Path) -> dict[str, float]:
    """The numbers, 0 or above, that a command keeps by name in a JSON file; empty where there is no file.

    Raises UserError if the file holds anything else.
    """
    if not (file.exists() or file.is_symlink()):
        return {}
    found: Any = None
    with suppress(OSError, ValueError):  # a pipe is not opened: it might never end
        found = from_json(file.read_text(encoding="utf-8")) if file.is_file() else None
    numbers = found.values() if isinstance(found, dict) else [None]
    if any(isinstance(one, bool) or not isinstance(one, int | float) or one < 0 for one in numbers):
        raise UserError(f"{str(file)!r} does not hold numbers by name: restore it from a copy, or remove it")
    return dict(found)


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
