"""Unambiguous JSON: no duplicate keys, no NaN, bounded depth."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from sfumato.data.textfile import check_characters, read_text, shown
from sfumato.errors import UserError

DEEPEST = 32
"""Most levels of nested lists and objects."""


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text; UserError, beginning with `where`, for anything ambiguous or unbounded."""

    def refuse(what: str) -> NoReturn:
        raise UserError(f"{where} {what}")

    if not text.strip():
        refuse("is empty: write its values, or remove it")

    def number(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else refuse(f"holds {digits[:20]}, which is not a finite number")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) < len(items):
            keys = [key for key, _ in items]
            twice = next(key for key in keys if keys.count(key) > 1)
            refuse(f"has the key {shown(twice)} twice: keep one of them")
        return made

    def constant(name: str) -> NoReturn:
        refuse(f"holds {name}, which is not JSON: write null or a finite number")

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=constant, parse_float=number)
    except json.JSONDecodeError as error:
        line = f" in line {error.lineno}" if "\n" in text.strip() else ""
        refuse(f"is not JSON ({error.msg}{line}, column {error.colno})")
    except RecursionError:
        refuse(f"is nested deeper than {DEEPEST} levels")
    except UserError:
        raise
    except ValueError:
        refuse("holds a whole number of thousands of digits: write it as text")
    _check(value, where)
    return value


def read_json(path: Path, encoding: str | None = None, name: str | None = None) -> Any:
    """As `parse_json`, for a whole file read by `read_text`."""
    return parse_json(read_text(path, encoding, way_out="save it as UTF-8", name=name), name or str(path))


def _check(value: Any, where: str) -> None:
    """Checks depth and characters, without recursion."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise UserError(f"{where} is nested deeper than {DEEPEST} levels")
        below: list[Any] = []
        for one in level:
            if isinstance(one, str):
                check_characters(one, where)
            elif isinstance(one, dict):
                below.extend(one.keys())
                below.extend(one.values())
            elif isinstance(one, list):
                below.extend(one)
        level = below
