"""Matching names in metadata with files of the folder, also if they are not exactly equal."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from sfumato.data.opening import is_image


def folded(text: str) -> str:
    """A name for comparison: Unicode form and letter case do not matter."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


class Names:
    """Finds files by the names in rows of metadata.

    A name matches the file of exactly that path, relative to the metadata. Else it matches a file if that is the only
    candidate: the same path in another letter case or Unicode form, without its ending, with leading folders that do
    not exist here (`/home/me/set/0.png`, `train/0.png`), or without the folders that are here. A file that some row
    names exactly is not matched by similarity, and neither is one that two names resemble.
    """

    def __init__(self, root: Path, files: Sequence[str]) -> None:
        self._root = root
        self._files = set(files)
        self._whole: dict[str, list[str]] = defaultdict(list)
        self._last: dict[str, list[str]] = defaultdict(list)
        for name in files:
            path = PurePosixPath(name)
            self._whole[folded(name)].append(name)
            self._last[folded(path.name)].append(name)
            if is_image(path.name):
                self._last[folded(path.stem) + "/"].append(name)  # apart from whole names: none holds a slash

    def resolve(self, base: str, given: Sequence[str]) -> dict[str, str]:
        """The file of each name that matches one; `base` is the folder of the metadata, "" or ending in "/"."""
        exact = {name: file for name in given if (file := self._exact(base, name)) is not None}
        taken = set(exact.values())
        near: dict[str, set[str]] = defaultdict(set)
        for name in dict.fromkeys(given):
            if name not in exact and (file := self._near(base, name, taken)) is not None:
                near[file].add(name)
        return exact | {next(iter(names)): file for file, names in near.items() if len(names) == 1}

    def _exact(self, base: str, given: str) -> str | None:
        path = _normal(base, _slashes(given), self._root)
        if path is None:
            return None
        return path if path in self._files or (self._root / path).is_file() else None

    def _near(self, base: str, given: str, taken: set[str]) -> str | None:
        path = PurePosixPath(_slashes(given))
        whole = _normal(base, path.as_posix(), self._root)
        if whole is not None:
            same = [file for file in self._whole.get(folded(whole), ()) if file not in taken]
            if len(same) == 1:
                return same[0]
        keys = [folded(path.name)]
        if not is_image(path.name):
            keys.append(folded(path.name) + "/")
        for key in keys:
            named = _parts(path, stem=key.endswith("/"))
            fitting = [
                file
                for file in self._last.get(key, ())
                if file.startswith(base)
                and file not in taken
                and _ends_alike(named, _parts(PurePosixPath(file.removeprefix(base)), stem=key.endswith("/")))
            ]
            if len(fitting) == 1:
                return fitting[0]
            if fitting:
                return None
        return None


def common_reason(missing: Sequence[str], files: Iterable[str]) -> str:
    """The names in the metadata and those in the folder, for a message."""
    there = [name for _, name in zip(range(3), files, strict=False)]
    named = ", ".join(map(repr, missing[:3])) + (", …" if len(missing) > 3 else "")
    return f"it names {named}; the folder contains {', '.join(map(repr, there)) or 'no images'}"


def _slashes(given: str) -> str:
    return given.strip().replace("\\", "/")


def _parts(path: PurePosixPath, stem: bool) -> list[str]:
    parts = [folded(part) for part in path.parts if part not in ("/", ".", "..")]
    if stem and parts and is_image(path.name):
        parts[-1] = folded(path.stem)
    return parts


def _ends_alike(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether one path is the end of the other."""
    shorter = min(len(one), len(other))
    return shorter > 0 and list(one[-shorter:]) == list(other[-shorter:])


def _normal(base: str, given: str, root: Path) -> str | None:
    """The path relative to the folder, without '.' and '..'; None if it leaves the folder."""
    path = PurePosixPath(given)
    if path.is_absolute():
        for start in (PurePosixPath(root.absolute().as_posix()), PurePosixPath(root.resolve().as_posix())):
            if path.is_relative_to(start):
                return path.relative_to(start).as_posix()
        return None
    parts: list[str] = []
    for part in PurePosixPath(base, given).parts:
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)
