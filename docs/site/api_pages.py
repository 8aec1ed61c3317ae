"""The pages of the Python interface: which modules stand on which page. mkdocstrings reads their docstrings."""

import importlib
import pkgutil
from collections.abc import Iterator

import sfumato

BEHIND = "---\nsearch: {boost: 0.3}\n---\n\n"  # the search shows guides before the many names of the code
HEAD = f"""{BEHIND}# Python

The packages in the order of the data, then the names of `import sfumato`. Shapes are written (B, C, H, W); images are
in about [-1, 1] unless a docstring says otherwise.

"""
PACKAGES = {
    "autoencoder": "Stage 1: image to latent and back.",
    "conditioning": "From prompts, classes, maps and boxes to a `Condition`.",
    "diffusion": "Stage 2, the mathematics: schedules, objective, prediction.",
    "denoiser": "Stage 2, the networks.",
    "sampling": "Samplers, grids of times, guidance, windows: for any denoise function.",
    "pipeline": "One request, one path from conditions to images.",
    "tasks": "The paper's tasks on PIL images.",
    "data": "Folders, the toy world, conditions, degradations, caches.",
    "training": "The loops of both stages, optimiser, averages, states.",
    "evaluation": "Metrics and feature networks.",
    "fit": "From the facts of a folder to a plan.",
    "interop": "Checkpoints of other programs.",
}


def pages() -> dict[str, str]:
    """Page name to Markdown."""
    rows = "\n".join(f"- [`sfumato.{name}`]({name}.md): {text}" for name, text in PACKAGES.items())
    made = {"reference/api/index.md": f"{HEAD}## Packages\n\n{rows}\n\n## Public names\n\n{''.join(_public())}"}
    for name, text in PACKAGES.items():
        blocks = "".join(f"::: {module}\n\n" for module in _modules(name))
        made[f"reference/api/{name}.md"] = f"{BEHIND}# sfumato.{name}\n\n{text}\n\n{blocks}"
    return made


def _public() -> Iterator[str]:
    for name in sfumato.__all__:
        value = getattr(sfumato, name)
        if hasattr(value, "__qualname__"):
            yield f"::: {value.__module__}.{value.__qualname__}\n    options:\n      heading_level: 3\n\n"


def _modules(package: str) -> Iterator[str]:
    """The modules of a package, and of its packages, that have anything public."""
    root = importlib.import_module(f"sfumato.{package}")
    for info in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
        if not info.ispkg and not info.name.rsplit(".", 1)[1].startswith("_"):
            yield info.name
