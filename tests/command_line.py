"""Shared by the tests of the command line: the tiny models' settings and folders, and the result of a command."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

TEXT = "conditioner={kind: text, dim: 32, depth: 1, heads: 2, head_dim: 16, max_tokens: 16, vocabulary: 300}"
CLASS = "conditioner={kind: class, classes: 24, dim: 32}"


@dataclass(frozen=True)
class Runs:
    """Folders of finished runs, and the configurations they were made from."""

    root: Path
    first: Path
    """Configuration of `autoencoder`."""
    second: Path
    """Configuration of the others but for the conditioner."""
    autoencoder: Path
    text: Path
    label: Path
    undropped: Path
    """Conditioned on text, trained without condition dropout."""
    plain: Path
    """Unconditional."""


@dataclass(frozen=True)
class Outcome:
    """The result of a command."""

    code: int
    out: str
    err: str


def facts_of(path: Path) -> dict[str, str]:
    """The facts in a PNG about how it was made, as texts."""
    with Image.open(path) as image:
        assert set(image.text) == {"parameters", "sfumato"}  # type: ignore[attr-defined]  # of PNG files
        settings = json.loads(image.text["sfumato"])  # type: ignore[attr-defined]
    return {name: str(value) for name, value in {**settings["facts"], "sfumato": settings["version"]}.items()}


Command = Callable[..., Outcome]


def contents(root: Path) -> dict[str, bytes | None]:
    """Every file and folder below, and what is in it."""
    found = sorted(root.rglob("*"))
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in found}


def check(done: Outcome, sentence: str) -> None:
    """A refusal with this in its last line."""
    assert done.code == 2, done
    assert "Traceback" not in done.err
    assert sentence in done.err.splitlines()[-1], done.err
    assert done.err.splitlines()[-1].startswith("sfumato: ")
