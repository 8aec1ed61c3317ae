"""The public interface: every name is documented by an example that runs, imported lazily, and typed."""

import ast
import doctest
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import sfumato
import tiny
from sfumato.training.averages.snapshots import save_snapshot
from test_classifier import tiny_classifier

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api-stability.md"
OBJECTS = [name for name in sfumato.__all__ if name != "__version__"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples name: runs/images, runs/classifier and three captioned images."""
    folder = tmp_path_factory.mktemp("examples")
    model = tiny.model(tiny.UNCONDITIONAL, "autoencoder.norm_groups=8")
    run = folder / "runs" / "images"
    model.save(run / "model")
    assert model.second is not None
    weaker = {f"denoiser.{name}": 0.9 * value for name, value in model.second.denoiser.named_parameters()}
    save_snapshot(run / "snapshots", 1, 0.1, weaker, 1)
    tiny_classifier().save(folder / "runs" / "classifier")
    (folder / "images").mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (70, 64), colour).save(folder / "images" / f"{number}.png")
        (folder / "images" / f"{number}.txt").write_text(f"a {colour} square")
    return folder


def examples(name: str) -> list[doctest.DocTest]:
    """The examples in the docstrings of a public name and of its methods."""
    thing = getattr(sfumato, name)
    documented = [thing, *(vars(thing).values() if inspect.isclass(thing) else ())]
    texts = [inspect.getdoc(one) or "" for one in documented if one is thing or inspect.isfunction(one)]
    names: dict[str, Any] = {"sfumato": sfumato, "torch": torch, "Image": Image, "Path": Path}
    parser = doctest.DocTestParser()
    return [parser.get_doctest(text, dict(names), name, None, None) for text in texts if ">>>" in text]


@pytest.mark.parametrize("name", OBJECTS)
def test_every_public_name_has_an_example_that_runs(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    found = examples(name)
    assert found, f"sfumato.{name} has no example"
    lines: list[str] = []
    with torch.no_grad():
        for example in found:
            doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL).run(example, out=lines.append)
    assert not lines, "".join(lines)


def test_names_are_those_that_the_module_gives_and_checkers_see() -> None:
    tree = ast.parse((ROOT / "src" / "sfumato" / "__init__.py").read_text(encoding="utf-8"))
    typed = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed - {None} == set(OBJECTS)
    assert sorted(sfumato.__all__) == dir(sfumato)
    assert set(sfumato._HOMES) | set(sfumato._ROOMS) | {"__version__"} == set(sfumato.__all__)


def test_the_page_lists_every_name() -> None:
    listed = set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == set(OBJECTS)


def annotations(thing: Any) -> Iterator[str]:
    """Public functions of a class, or the function itself, that lack an annotation."""
    functions = [thing] if inspect.isfunction(thing) else [f for f in vars(thing).values() if inspect.isfunction(f)]
    for function in functions:
        signature = inspect.signature(function)
        parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
        empty = inspect.Parameter.empty
        if not function.__name__.startswith("_") and empty in (
            signature.return_annotation,
            *(p.annotation for p in parameters),
        ):
            yield function.__qualname__


def test_every_public_function_is_annotated() -> None:
    assert [bare for name in OBJECTS if name != "tasks" for bare in annotations(getattr(sfumato, name))] == []


def test_a_deprecated_name_warns_and_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sfumato._DEPRECATED, "Error", ("UserError", "0.2"))
    with pytest.warns(DeprecationWarning, match=r"sfumato\.Error is deprecated since 0\.2: use sfumato\.UserError"):
        assert sfumato.Error is sfumato.UserError  # type: ignore[attr-defined]


def test_the_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert citation is not None
    assert sfumato.__version__ == project["version"] == citation.group(1).strip("\"'")
