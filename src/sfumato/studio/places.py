"""Paths that the page names: below the given folders, links resolved, and nothing else."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.errors import UserError

DEEPEST = 8
MOST_ENTRIES = 20_000
"""Folders that are looked into, all together: a search ends there."""
LARGE = 2_000
"""A folder with more entries holds data, and no runs below it are searched for."""
INSIDE_RUNS = frozenset({"states", "previews", "snapshots", "cache", "model", "best", "tensorboard", "wandb"})


@dataclass(frozen=True)
class Places:
    """The folders that the page may read.

    Attributes:
        folders: as they were given; resolved paths below them are allowed.
    """

    folders: tuple[Path, ...]

    def below(self, text: str) -> Path:
        """The path that a text names, resolved. Raises UserError for one outside the folders, or of nothing."""
        try:
            path = Path(text).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            raise UserError(f"{text[:200]!r} does not exist") from None
        self._check(path, text)
        return path

    def new(self, text: str) -> Path:
        """The path of a folder that may not exist yet; its parent must. Raises UserError as `below` does.

        A relative one is below the given folder whose name it begins with, else below the first.
        """
        if not text.strip() or "\0" in text:
            raise UserError("the name of the new folder is empty: give one such as runs/mine")
        path = Path(text)
        if not path.is_absolute():
            roots = [folder.resolve() for folder in self.folders]
            named = [root.parent for root in roots if (root.name,) == path.parts[:1]]
            path = [*named, roots[0]][0] / path
        path = Path(os.path.normpath(path))
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        self._check(existing.resolve(), text)
        return existing.resolve() / path.relative_to(existing)

    def folders_in(self, enter: Callable[[Path, list[str], list[str]], bool]) -> Iterator[Path]:
        """Every folder below, the given ones included, parents first; hidden ones are passed over.

        `enter` receives a folder with the names of its files and folders, and returns whether to continue below it.
        """
        seen: set[Path] = set()
        queue = [(folder.resolve(), 0) for folder in self.folders]
        while queue and len(seen) < MOST_ENTRIES:
            folder, depth = queue.pop(0)
            if folder in seen:
                continue
            seen.add(folder)
            files, inner = _entries(folder)
            yield folder
            if depth < DEEPEST and enter(folder, files, inner):
                queue += [(folder / name, depth + 1) for name in inner]

    def name_of(self, path: Path) -> str:
        """A short name: relative to the folder that contains it."""
        for folder in self.folders:
            root = folder.resolve()
            if path == root:
                return path.name
            if path.is_relative_to(root):
                return str(path.relative_to(root))
        return str(path)

    def _check(self, path: Path, text: str) -> None:
        if not any(path.is_relative_to(folder.resolve()) for folder in self.folders):
            named = ", ".join(str(folder) for folder in self.folders)
            raise UserError(
                f"{text[:200]!r} is outside of the studio's folders ({named}): start the studio with its folder"
            )


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names of files and of folders, sorted; links to folders and hidden names are left out."""
    files: list[str] = []
    inner: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                (inner if entry.is_dir(follow_symlinks=False) else files).append(entry.name)
    except OSError:
        return [], []
    return sorted(files), sorted(inner)


def is_large(files: Sequence[str], inner: Sequence[str]) -> bool:
    """Whether a folder holds data rather than runs."""
    return len(files) + len(inner) > LARGE
