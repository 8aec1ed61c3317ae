"""The base of every configuration: frozen, and strict about unknown keys and about paths."""

import os
import re
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


class Schema(BaseModel):
    """A typed, immutable configuration; an unknown key is an error (sfumato.config names the nearest known one).

    A path may begin with ~, the home folder; an empty one or a URL is an error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _paths_are_paths(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        typed = {name for name, field in cls.model_fields.items() if Path in (field.annotation, *_members(field))}
        paths = {name: checked_path(raw[name], name) for name in typed if isinstance(raw.get(name), str)}
        return {**raw, **paths}


def _members(field: Any) -> tuple[Any, ...]:
    return get_args(field.annotation)


def checked_path(text: str, name: str) -> str:
    """The text with a leading ~ expanded. Raises ValueError for what is no path of this machine; `name` names it."""
    if not text.strip():
        raise ValueError(f"{name} is empty: give a path; was a variable of the shell not set?")
    if "\0" in text:
        raise ValueError(f"{name} {text!r} holds a NUL character, which no path may have")
    if _URL.match(text):
        raise ValueError(f"{name} {text!r} is a URL: download what is there, and give the path of the file or folder")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~") and not os.path.exists(text):
        raise ValueError(f"{name} {text!r} names the home folder of nobody here: give the whole path")
    return expanded
