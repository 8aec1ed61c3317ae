"""Trained models inside the package: `zoo:toy` and `zoo:emoji` stand wherever a model folder does."""

import re
from pathlib import Path

from sfumato.config import ZOO_PREFIX, zoo_names
from sfumato.errors import UserError

WEIGHTS = Path(__file__).with_name("weights")
CARD = "README.md"
"""What the model is, what it was trained on, under which licence: the first line is its description."""
SAMPLES = "samples.png"
FIRST = "toy"
"""What a newcomer meets first: it does what a prompt says more often than the others."""


def shipped_models() -> list[str]:
    """The names, without `zoo:`, in the order in which they are listed everywhere."""
    names = (folder.name for folder in WEIGHTS.iterdir() if (folder / CARD).exists())
    return sorted(names, key=lambda name: (name != FIRST, name))


def description(name: str) -> str:
    """The heading of the model's card."""
    return (WEIGHTS / name / CARD).read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


def example(name: str) -> str | None:
    """A prompt that the model understands: the first text in quotation marks of its card."""
    found = re.search(r'"([^"]+)"', (WEIGHTS / name / CARD).read_text(encoding="utf-8"))
    return None if found is None else found[1]


def samples(name: str) -> Path | None:
    """The file of some of the model's samples; None for a name that is not a model's."""
    return WEIGHTS / name / SAMPLES if name in shipped_models() else None


def is_shipped(path: Path | str) -> bool:
    """Whether a path is a name of the zoo instead."""
    return str(path).startswith(ZOO_PREFIX)


def shipped_name(path: Path | str) -> str:
    """The name without `zoo:`."""
    return str(path).removeprefix(ZOO_PREFIX)


def shipped_folder(path: Path | str) -> Path:
    """The model folder of a name such as `zoo:toy`. Raises UserError for a name that is not a model's."""
    name = shipped_name(path)
    if name in shipped_models():
        return WEIGHTS / name
    models = [f"{ZOO_PREFIX}{each}" for each in shipped_models()]
    have = f"the trained model{'s' if len(models) > 1 else ''} {' and '.join(models)}"
    if name in zoo_names():
        raise UserError(
            f"{str(path)!r} is a configuration to train from (`sfumato train`), not a model; the package has {have}"
        )
    raise UserError(f"model {str(path)!r} is not in the package, which has {have}; `sfumato zoo` lists everything")
