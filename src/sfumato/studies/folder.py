"""The folder of a study, whatever it compares: its configuration, its trainings in turn, and the page after each."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor

from sfumato.checkpoint import write_text
from sfumato.config import parse, parse_mapping, to_yaml
from sfumato.errors import UserError
from sfumato.images import from_pil
from sfumato.report.machine import describe
from sfumato.schema import Schema
from sfumato.training.run import flat
from sfumato.training.workers import Workers

CONFIG_FILE = "study.yaml"
PAGE_FILE = "study.html"
C = TypeVar("C", bound=Schema)
A = TypeVar("A")
R = TypeVar("R")


def run_in_turn(
    todo: Sequence[A],
    folder: Path,
    workers: Workers,
    say: Callable[[str], None],
    title: Callable[[A], str],
    run: Callable[[A], R],
    page: Callable[[Sequence[R], str], str],
) -> list[R]:
    """Runs the trainings of a study, or reads their results where they are finished, and writes the page after each.

    Args:
        todo: what is trained.
        folder: the study's.
        workers: where it computes.
        say: receives the title of each.
        title: of one of `todo`.
        run: one of them; returns its result.
        page: the text of the page, of the results so far and where the study ran.
    """
    machine = describe(workers.device)
    where = f"{machine.device}, {machine.threads} threads, torch {machine.torch}"
    results: list[R] = []
    for number, one in enumerate(todo, start=1):
        say(f"[{number}/{len(todo)}] {title(one)}")
        results.append(run(one))
        write_text(folder / PAGE_FILE, page(results, where))
    return results


def read_image(path: Path) -> Tensor:
    """An image of the study's folder, (3, H, W) in [-1, 1]."""
    with Image.open(path) as opened:
        return from_pil(opened)


def claim(config: C, folder: Path, may_change: Callable[[str, Any, Any], bool]) -> None:
    """Creates the folder, or checks that it contains this study.

    `may_change` is given the name, the old and the new value of each setting that differs.
    Raises UserError naming what differs.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {str(folder)!r} is a file: give a folder")
    file = folder / CONFIG_FILE
    if file.exists():
        before = parse(parse_mapping(file.read_text(encoding="utf-8"), str(file)), type(config), str(file))
        for name in type(config).model_fields:
            old, new = getattr(before, name), getattr(config, name)
            if old != new and not may_change(name, old, new):
                key, old, new = _first_difference(name, old, new)
                raise UserError(
                    f"--out {str(folder)!r} contains a study with {key} = {old!r}, not {new!r}: give the same command "
                    "to continue it, or another folder"
                )
    write_text(file, to_yaml(config))


def _first_difference(name: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """A setting that differs, or the first one in it if it is a group of settings: dotted key, old and new value."""
    if not (isinstance(old, Schema) and isinstance(new, Schema)):
        return name, old, new
    before, now = flat(old), flat(new)
    key = next(key for key in sorted({*before, *now}) if before.get(key) != now.get(key))
    return f"{name}.{key}", before.get(key), now.get(key)
