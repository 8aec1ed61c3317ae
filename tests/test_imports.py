"""The import direction of docs/architecture.md, read from the source."""

import ast
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sfumato"

BASE = {"schema", "errors", "counts"}
NETWORKS = {"nn", "autoencoder", "conditioning", "diffusion", "denoiser", "sampling"}
MODEL = (
    {
        "model",
        "model_config",
        "model_folder",
        "pipeline",
        "images",
        "engine",
        "checkpoint",
        "config",
        "rng",
        "conditioning.metadata",
    }
    | NETWORKS
    | BASE
    | {"locks", "plain_json", "foreign", "documents", "versions", "stored_format", "stored_precision", "shipped", "hub"}
)

ALLOWED: dict[str, set[str]] = {
    "limits": set(),
    "schema": {"limits"},
    "errors": set(),
    "counts": set(),
    "rng": {"twister"},
    "twister": set(),
    "locks": {"errors"},
    "stored_format": {"errors"},
    "plain_json": {"errors"},
    "foreign": {"errors"},
    "documents": {"errors", "foreign"},
    "nn": {"schema"},
    "autoencoder": {"nn"} | BASE,
    "autoencoder.tiny_file": {"checkpoint", "config", "stored_precision", "versions"} | BASE,
    "conditioning": {"nn", "foreign", "documents"} | BASE,
    "diffusion": BASE,
    "baselines": MODEL,
    "denoiser": {"nn", "conditioning.condition"} | BASE,
    "sampling": {"diffusion"} | BASE,
    "data": {"rng", "conditioning.metadata", "locks", "plain_json", "checkpoint"} | BASE,
    "evaluation": {
        "errors",
        "documents",
        "autoencoder.efficientnet",
        "autoencoder.frequencies",
        "autoencoder.perceptual",
        "conditioning.sources",
    },
    "checkpoint": {"plain_json", "foreign", "state_parts", "stored_precision"} | BASE,
    "stored_precision": BASE,
    "state_parts": {"errors", "plain_json"},
    "images": {"checkpoint"},
    "provenance": {"pipeline", "engine", "plain_json", "__version__"},
    "flops": {"nn", "autoencoder", "baselines.network", "denoiser", "conditioning"},
    "config": {"foreign", "documents", "stored_format"} | BASE,
    "versions": {"checkpoint"} | BASE,
    "shipped": {"config"} | BASE,
    "hub": {"errors", "foreign"},
    "outputs": {"checkpoint", "locks", "versions"} | BASE,
    "engine": {"nn", "autoencoder", "conditioning", "denoiser"} | BASE,
    "model_config": {
        "autoencoder",
        "conditioning",
        "denoiser",
        "diffusion",
        "conditioning.metadata",
        "schema",
        "stored_format",
    },
    "pipeline": NETWORKS | BASE | {"model_config", "autoencoder", "engine", "rng", "config", "__version__"},
    "model": MODEL - {"model_folder"},
    "model_folder": MODEL,
    "quantization": MODEL,
    "classifier": {
        "foreign",
        "stored_format",
        "model",
        "model_folder",
        "versions",
        "checkpoint",
        "config",
        "nn",
        "autoencoder",
        "denoiser",
        "diffusion",
        "pipeline",
    }
    | BASE,
    "tasks": MODEL | {"data"},
    "training": MODEL
    | {"baselines", "data", "evaluation", "classifier", "flops", "outputs", "state_parts", "training"},
    "interop": MODEL | {"outputs"},
    "studies": MODEL | {"baselines", "cards", "data", "evaluation", "training", "estimate", "report"},
    "estimate": MODEL | {"data", "evaluation", "flops", "training", "report.machine"},
    "report": MODEL | {"data", "evaluation"},
    "fit": MODEL | {"cards", "data", "evaluation", "training", "estimate", "report", "outputs"},
    "cards": MODEL | {"data", "evaluation", "report"},
    "publishing": MODEL | {"cards", "report", "training"},
    "service": MODEL | {"data", "tasks", "provenance", "__version__"},
    "studio": {"service", "cards.card", "data", "documents", "training"} | MODEL,
    "service.settings": {"pipeline", "errors"},
    "cli": {"*"},
    "__main__": {"cli"},
    "__init__": {"*"},
}


def imports_of(path: Path) -> set[str]:
    """The modules of ours that a file imports anywhere in it, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "sfumato" else {module}
    return {name.removeprefix("sfumato.") for name in found if name.startswith("sfumato.")}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert room in ALLOWED, f"{room} has no row in the table of docs/architecture.md and in this test"
    allowed = ALLOWED[room] | {room} | ALLOWED.get(_dotted(path), set())
    for name in imports_of(path):
        if "*" in allowed or name == "__version__":
            continue
        fits = any(name == rule or name.startswith(rule + ".") for rule in allowed)
        assert fits, f"{path.relative_to(SOURCE)} imports sfumato.{name}; {room} may import {sorted(allowed)}"


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, sfumato, sfumato.cli; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


@pytest.mark.parametrize("name", ["utils.py", "helpers.py", "common.py", "misc.py"])
def test_there_are_no_drawers(name: str) -> None:
    assert not list(SOURCE.rglob(name))


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions and for annotations count as well: they are where circles hide."""
    modules = {_dotted(path): path for path in SOURCE.rglob("*.py")}
    order = TopologicalSorter({name: _modules_read(path, modules) - {name, ""} for name, path in modules.items()})
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail(f"these modules import each other: {' -> '.join(error.args[1])}")


def _dotted(path: Path) -> str:
    """`sampling.loop` of sampling/loop.py, `sampling` of sampling/__init__.py, "" of the package's own."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def _modules_read(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules whose names a file imports, by their dotted names within the package."""
    read = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sfumato":
            room = (node.module or "").removeprefix("sfumato").removeprefix(".")
            names = {f"{room}.{alias.name}".removeprefix(".") for alias in node.names}
            read |= {name if name in modules else room for name in names}
    return read
