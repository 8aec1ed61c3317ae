"""Where the images of a set are stored, by their names in its scan."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from sfumato.data.contents import file_hashes
from sfumato.data.dataset import Progress
from sfumato.data.listing import list_files
from sfumato.data.opening import is_image
from sfumato.data.packed import ImageFile
from sfumato.errors import UserError

IMAGES = "images"
"""The sub-folder whose name may be left out of the paths of maps and in annotations."""


class Places(Protocol):
    """Finds what is stored for an image."""

    def place(self, name: str, /) -> ImageFile:
        """The image's bytes."""
        ...

    def hashes(self, names: Sequence[str], cache: Path | None = None, progress: Progress | None = None) -> list[bytes]:
        """The hash of each image's whole content, as it is now; empty bytes for one that cannot be read."""
        ...

    def companions(self, names: Sequence[str], kind: str) -> dict[str, ImageFile]:
        """The further image of a `kind`, such as its label map, of each; UserError if one has none."""
        ...


class FolderPlaces:
    """Files of a folder by their relative paths; companions are in a sub-folder of the kind's name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def place(self, name: str) -> ImageFile:
        return self.root / name

    def hashes(self, names: Sequence[str], cache: Path | None = None, progress: Progress | None = None) -> list[bytes]:
        return file_hashes([self.root / name for name in names], cache, progress)

    def companions(self, names: Sequence[str], kind: str) -> dict[str, ImageFile]:
        """The same path in the folder `kind`, with any ending of an image."""
        place = self.root / kind
        if not place.is_dir():
            raise UserError(f"the folder of label maps {place} does not exist: put a map there for each image")
        there: dict[str, str] = {}
        for name in list_files(place):
            if is_image(name):
                there.setdefault(PurePosixPath(name).with_suffix("").as_posix(), name)
        found: dict[str, ImageFile] = {}
        missing: list[str] = []
        for file in dict.fromkeys(names):
            stem = PurePosixPath(file).with_suffix("")
            inner = PurePosixPath(*stem.parts[1:]) if stem.parts[0] == IMAGES and len(stem.parts) > 1 else stem
            own = there.get(inner.as_posix()) or there.get(stem.as_posix())
            if own is None:
                missing.append(f"{file}, expected as {kind}/{inner}.png")
            else:
                found[file] = place / own
        if missing:
            raise UserError(
                f"{len(missing)} of {len(set(names))} images have no label map in {place}: the first is {missing[0]}; "
                "add the maps or take the images out"
            )
        return found
