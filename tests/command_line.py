"""What the tests of the command line share: the tiny models' settings, where they are, what a command left behind."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
    """What a command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]
