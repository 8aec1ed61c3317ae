"""The content of a folder: files to read, and what is skipped (runs, model folders, pipes and devices)."""

import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.checkpoint import RUN_LOG, RUN_PARTS
from sfumato.counts import how_many
from sfumato.data.opening import is_image, kind_of, why_not
from sfumato.data.textfile import shown
from sfumato.errors import UserError

CONFIGURATION = "config.yaml"
_EXAMPLES = 3
_NOT_REGULAR = ", not a regular file"
"""How the reason of a pipe, a device or a closed folder ends."""
_SYSTEM = frozenset(
    {"__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found"}
)
"""Folders, in lower case, in which operating systems and disk stations keep thumbnails and deleted files."""
_KERNEL = ("/proc", "/sys")
"""Folders whose files the kernel makes up when they are asked for; links there lead everywhere, and there is no end."""


@dataclass(frozen=True)
class Listing:
    """Relative posix paths, sorted.

    `files` are regular files and dangling links; `special` anything else, and folders that cannot be opened, with what
    it is; `runs` the folders of runs and models with the number of images in each, which are not among the files;
    `system` the folders of the operating system, which are not read; `empty` folders without any file.
    """

    files: tuple[str, ...]
    special: tuple[tuple[str, str], ...] = ()
    runs: tuple[tuple[str, int], ...] = ()
    system: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()

    def without(self, folders: Sequence[str]) -> "Listing":
        """The listing without what is in the folders or files of these names."""
        aside = tuple(f"{name.rstrip('/')}/" for name in folders)

        def kept(name: str) -> bool:
            return not f"{name}/".startswith(aside)

        return Listing(
            tuple(filter(kept, self.files)),
            tuple(each for each in self.special if kept(each[0])),
            tuple(each for each in self.runs if kept(each[0])),
            tuple(filter(kept, self.system)),
            tuple(filter(kept, self.empty)),
        )


def list_files(root: Path) -> list[str]:
    """The files of `listing`."""
    return list(listing(root).files)


def listing(root: Path) -> Listing:
    """Everything below the folder; hidden files are ignored, links to folders followed.

    Folders of runs and models below it are skipped as a whole; if the folder is itself that of a run, only what
    training writes into it is skipped. Raises UserError for a folder of the kernel.
    """
    if _of_the_kernel(os.path.realpath(root)):
        raise UserError(f"{str(root)!r} is a folder of the operating system, without images: give one with images")
    files: list[str] = []
    special: list[tuple[str, str]] = []
    runs: list[tuple[str, int]] = []
    system: list[str] = []
    empty: list[str] = []
    seen: set[str] = set()

    def closed(error: OSError) -> None:
        place = os.path.relpath(error.filename, root) if error.filename else "."
        special.append((Path(place).as_posix(), f"a folder that cannot be opened ({error.strerror})"))

    for place, folders, names in os.walk(root, onerror=closed, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a parent folder would never end
            folders.clear()
            continue
        seen.add(real)
        if _of_the_kernel(real):
            system.append(Path(place).relative_to(root).as_posix())
            folders.clear()
            continue
        below = Path(place).relative_to(root)
        if not folders and not names and below != Path():
            empty.append(below.as_posix())
        system += [(below / name).as_posix() for name in folders if name.lower() in _SYSTEM]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name.lower() not in _SYSTEM)
        if is_run(names, folders):
            own = [name for name in folders if name in (*RUN_PARTS, "cache")] if below == Path() else []
            runs.append((below.as_posix(), _images_in([Path(place) / name for name in own] if own else [Path(place)])))
            if below != Path():
                folders.clear()
                continue
            folders[:] = [name for name in folders if name not in own]
        for name in names:
            if name.startswith("."):
                continue
            what = _special(os.path.join(place, name))
            if what:
                special.append(((below / name).as_posix(), what))
            else:
                files.append((below / name).as_posix())
    kinds = (tuple(sorted(special)), tuple(sorted(runs)), tuple(sorted(system)), tuple(sorted(empty)))
    return Listing(tuple(sorted(files)), *kinds)


def _of_the_kernel(real: str) -> bool:
    return any(Path(real).is_relative_to(folder) for folder in _KERNEL)


def is_run(names: Sequence[str], folders: Sequence[str]) -> bool:
    """Whether files and folders of these names make up a run or a model as sfumato writes them."""
    if CONFIGURATION not in names:
        return False
    return (
        RUN_LOG in names
        or any(part in folders for part in RUN_PARTS)
        or any(name.endswith(".safetensors") for name in names)
    )


def _special(path: str) -> str:
    """The kind of a path that is neither a regular file nor missing; "" otherwise."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return ""
    return "" if stat.S_ISREG(mode) else kind_of(mode)


def _images_in(places: Sequence[Path]) -> int:
    return sum(
        is_image(name) for place in places for _, _, names in os.walk(place) for name in names if name[:1] != "."
    )


def left_out(found: Listing) -> list[tuple[str, str]]:
    """(path, reason) of images that cannot be read, and of files that are not regular."""
    foreign = [(name, reason) for name in found.files if (reason := why_not(name)) is not None]
    special = [(name, f"it is {what}{_NOT_REGULAR}") for name, what in found.special]
    return sorted([*foreign, *special])


def in_a_note(name: str, reason: str) -> bool:
    """Whether a sentence of `notes_of` is about a file that cannot be read for this reason."""
    return why_not(name) is not None or reason.endswith(_NOT_REGULAR)


def notes_of(found: Listing) -> list[str]:
    """Sentences for the user on what is skipped."""
    notes = []
    foreign = [(Path(name).suffix.lower(), reason) for name in found.files if (reason := why_not(name)) is not None]
    if foreign:
        kinds = Counter(foreign).most_common()
        many = len(kinds) > 1
        listed = ", ".join(f"{f'{count} ' if many else ''}{ending} ({reason})" for (ending, reason), count in kinds)
        notes.append(f"{how_many(len(foreign), 'file was', 'files were')} left out: {listed}")
    if found.special:
        name, what = found.special[0]
        count = how_many(len(found.special), "file that is not regular was", "files that are not regular were")
        notes.append(f"{count} left out: the first is {name}, {what}")
    if found.system:
        notes.append(f"folders of the operating system are not read: {_listed(found.system)}")
    if found.empty:
        notes.append(f"{how_many(len(found.empty), 'folder is', 'folders are')} empty: {_listed(found.empty)}")
    inside = [(folder, count) for folder, count in found.runs if count]
    if inside:
        named = ", ".join(folder for folder, _ in inside[:_EXAMPLES]) + (", ..." if len(inside) > _EXAMPLES else "")
        total = sum(count for _, count in inside)
        notes.append(
            f"{how_many(total, 'image was', 'images were')} left out: in folders of runs and models ({named}), whose "
            "previews are not training data"
        )
    return notes


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:_EXAMPLES])) + (", ..." if len(names) > _EXAMPLES else "")
