"""The base of every configuration: frozen, strict about keys and paths, its numbers finite and of a sensible size."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, model_validator

from sfumato.limits import MOST, MOST_OTHERWISE

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
MOST_LEVELS = 16


class Schema(BaseModel):
    """A typed, immutable configuration; an unknown key is an error (sfumato.config names the nearest known one).

    Raises pydantic's ValidationError also for a float that is not finite, and for a whole number above MOST, so that
    a typing error gives a message and does not exhaust the memory. A path may start with ~, the home folder; an empty
    path or a URL is an error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _paths_are_paths(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        typed = {name for name, field in cls.model_fields.items() if Path in (field.annotation, *_members(field))}
        paths = {name: checked_path(raw[name], name) for name in typed if isinstance(raw.get(name), str)}
        return {**raw, **paths}

    @model_validator(mode="after")
    def _numbers_are_of_a_sensible_size(self) -> Self:
        for name in type(self).model_fields:
            most = MOST.get(name, MOST_OTHERWISE)
            for number in _whole_numbers(getattr(self, name)):
                if abs(number) > most:
                    raise ValueError(f"{name} is {_shown(number)}: give at most {most}")
        levels = getattr(self, "channel_multipliers", ())
        if len(levels) > MOST_LEVELS:
            raise ValueError(f"channel_multipliers has {len(levels)} levels: give at most {MOST_LEVELS}")
        return self


def _whole_numbers(value: Any) -> Iterator[int]:
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _whole_numbers(item)


def _shown(number: int) -> str:
    """The number, or its size if it has very many digits."""
    return str(number) if abs(number) < 10**30 else "a number of more than 30 digits"


def _members(field: Any) -> tuple[Any, ...]:
    return get_args(field.annotation)


def checked_path(text: str, name: str) -> str:
    """The text with a leading ~ expanded. Raises ValueError for a text that is not a local path; `name` is used in the
    message."""
    if not text.strip():
        raise ValueError(f"{name} is empty: give a path; was a variable of the shell not set?")
    if "\0" in text:
        raise ValueError(f"{name} {text!r} holds a NUL character, which no path may have")
    if _URL.match(text):
        raise ValueError(f"{name} {text!r} is a URL: download it, and give the path of the file or folder")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~") and not os.path.exists(text):
        raise ValueError(f"{name} {text!r} names the home folder of an unknown user: give the full path")
    return expanded
