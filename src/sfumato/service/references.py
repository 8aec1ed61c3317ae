"""Images that a request names: uploads, results, data URLs, files below given folders; opened by restricted readers."""

import base64
import binascii
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sfumato.data.dataset import UnreadableImage
from sfumato.data.reading import open_ids, open_image
from sfumato.errors import UserError
from sfumato.foreign import short
from sfumato.service.errors import RefusedError
from sfumato.service.store import JOBS, UPLOADS, Store, is_id

IMAGE = "image"
"""The name of an upload's file."""
DATA = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,(?P<content>.*)", re.DOTALL | re.IGNORECASE)
RESULT = re.compile(r"(?P<job>[0-9a-f]{16})/(?P<index>[0-9]{1,6})")


@dataclass(frozen=True)
class References:
    """Opens what a reference names.

    Attributes:
        store: of uploads and results.
        folders: of files that may be read, links resolved.
        pixels: of an image at most.
    """

    store: Store
    folders: Sequence[Path]
    pixels: int

    def image(self, reference: str, name: str) -> Image.Image:
        """In its own mode with sRGB colours. Raises RefusedError naming the field `name`."""
        return self._opened(reference, name, values=False)

    def values(self, reference: str, name: str) -> Image.Image:
        """A mask or a map as it is stored. Raises RefusedError naming the field `name`."""
        return self._opened(reference, name, values=True)

    def _opened(self, reference: str, name: str, values: bool) -> Image.Image:
        kind, _, rest = reference.partition(":")
        if kind == "data":
            return self.from_bytes(_data(reference, name), name, values)
        if kind == "upload" and is_id(rest):
            return self._read(self.store.path(UPLOADS, rest, IMAGE), name, f"upload {rest}", values)
        if kind == "image" and (found := RESULT.fullmatch(rest)):
            path = self.store.path(JOBS, found["job"], f"{int(found['index'])}.png")
            return self._read(path, name, f"image {rest}", values)
        if kind == "file":
            return self._read(self.file(rest, name), name, f"file {short(rest)}", values)
        raise RefusedError(
            400,
            f"{name} {short(reference[:80])} is not an image: give upload:ID, image:JOB/INDEX, "
            "data:image/png;base64,… or file:PATH",
            name,
        )

    def from_bytes(self, content: bytes, name: str, values: bool = False) -> Image.Image:
        """The image that a body holds. Raises RefusedError naming the field `name`."""
        with tempfile.TemporaryDirectory(prefix="sfumato-") as folder:
            path = Path(folder) / IMAGE
            path.write_bytes(content)
            return self._read(path, name, "of the request", values)

    def file(self, text: str, name: str) -> Path:
        """A file below one of the folders, links resolved. Raises RefusedError for any other path."""
        for folder in self.folders:
            try:
                path = (folder / text).resolve()
                inside = path.is_relative_to(folder.resolve()) and path.is_file()
            except (OSError, ValueError):
                continue
            if inside:
                return path
        raise RefusedError(400, f"{name} {short(text)} is not a file below the folders of this service", name)

    def _read(self, path: Path, name: str, what: str, values: bool) -> Image.Image:
        if not path.is_file():
            raise RefusedError(400, f"{name}: {what} is not here (any more): upload it again", name)
        try:
            image = open_ids(path, self.pixels) if values else open_image(path, self.pixels).image
        except UnreadableImage as error:
            raise RefusedError(400, f"{name}: {what} cannot be read: {error.reason}", name) from None
        except UserError as error:
            raise RefusedError(400, f"{name}: {str(error).replace(str(path), what)}", name) from None
        if image.width * image.height > self.pixels:
            raise RefusedError(
                400, f"{name} has {image.width}x{image.height} pixels, more than the {self.pixels:,} allowed here", name
            )
        return image


def named(reference: str) -> str:
    """A reference for a job to remember: a data URL, whose image is open already, without its content."""
    found = DATA.fullmatch(reference)
    if found is None:
        return reference
    return f"{reference[: found.start('content')]}… ({len(found['content']):,} characters)"


def _data(reference: str, name: str) -> bytes:
    found = DATA.fullmatch(reference)
    try:
        return base64.b64decode("".join((found["content"] if found else "!").split()), validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(
            400, f"{name} is not a data URL of an image, such as data:image/png;base64,…", name
        ) from None
