"""Label maps of stored images: ids by grey value or palette index, or colours listed in classes.txt."""

from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.conditioning.metadata import MapInput, standard_palette
from sfumato.counts import how_many
from sfumato.data.conditions.class_names import ClassNames, hex_of, read_class_names
from sfumato.data.conditions.config import MapsConfig
from sfumato.data.contents import content_hashes
from sfumato.data.dataset import UnreadableImage
from sfumato.data.image_dataset import ImageDataset
from sfumato.data.label_ids import COLOURED, ids_of
from sfumato.data.opening import opened
from sfumato.data.packed import ImageFile
from sfumato.data.reading import displayed_size, open_ids
from sfumato.data.transforms import Ids
from sfumato.errors import UserError

_JPEG = "; compression changes ids, so save maps as PNG"


def read_ids(path: ImageFile, classes: ClassNames, void: int | None) -> Ids:
    """A map file as class ids (H, W), uint8 where they fit, else int32.

    Colours are looked up where `classes` has some and the file is in colour or has a palette; else the grey value, or
    the index into the palette, is the id. Raises UserError for an id or colour without a class, or a file that is not
    a map.
    """
    try:
        image = open_ids(path)
    except UnreadableImage as error:
        raise UserError(f"map {path} cannot be read ({error.reason}): save it as PNG") from None
    by_colour = image.mode in COLOURED or (image.mode in ("P", "PA") and classes.colours is not None)
    found = None if by_colour else ids_of(image, f"map {path}")
    ids = _by_colour(np.asarray(image.convert("RGB")), classes, void, path) if found is None else found
    _check_ids(ids, len(classes.names), void, path)
    return ids.astype(np.uint8 if max(len(classes.names), (void or 0) + 1) <= 256 else np.int32)


def _by_colour(pixels: NDArray[np.uint8], classes: ClassNames, void: int | None, path: ImageFile) -> NDArray[np.int32]:
    keys = pixels.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    if classes.colours is None:
        if (pixels == pixels[..., :1]).all():  # grey, saved in colour
            return pixels[..., 0].astype(np.int32)
        raise UserError(
            f"map {path} is in colour, but classes.txt gives no colours: write lines such as 'sky #87ceeb', "
            "or save the map as ids"
        )
    table = np.array([r * 65536 + g * 256 + b for r, g, b in classes.colours], np.int32)
    order = np.argsort(table)
    place = np.searchsorted(table[order], keys).clip(max=len(table) - 1)
    ids = order[place].astype(np.int32)
    unknown = table[ids] != keys
    if void is not None:  # black and white without a class mean no class
        nothing = unknown & ((keys == 0) | (keys == 0xFFFFFF))
        ids[nothing] = void
        unknown &= ~nothing
    if unknown.any():
        row, column = (int(v) for v in np.argwhere(unknown)[0])
        r, g, b = (int(v) for v in pixels[row, column])
        raise UserError(
            f"map {path} has the colour {hex_of((r, g, b))} at row {row}, column {column}, which classes.txt does "
            "not list: add it there, or save the map without smoothing (PNG, not JPEG)"
        )
    return ids


def _check_ids(ids: NDArray[np.integer[Any]], count: int, void: int | None, path: ImageFile) -> None:
    outside = (ids < 0) | (ids >= count)
    if void is not None:
        outside &= ids != void
    if outside.any():
        row, column = (int(v) for v in np.argwhere(outside)[0])
        raise UserError(
            f"map {path} holds the id {int(ids[row, column])} at row {row}, column {column}, but classes.txt names "
            f"only {how_many(count, 'class', 'classes')} (0 to {count - 1}): add the missing names, or set "
            "conditions.map.void to the id that means no "
            f"class{_JPEG if path.suffix.lower() in ('.jpg', '.jpeg', '.webp') else ''}"
        )


class FolderMaps:
    """The field `map`, (H, W) integers, of each image of a folder, cropped with the image."""

    fields = ("map",)

    def __init__(self, folder: ImageDataset, config: MapsConfig) -> None:
        """Finds the maps and reads their headers. UserError if one is missing or has not its image's size."""
        self.folder, self.config = folder, config
        root = folder.scan.root
        self.classes = read_class_names(root / config.classes, folder.config.encoding)
        if config.void is not None and config.void < len(self.classes.names):
            raise UserError(
                f"conditions.map.void is {config.void}, the id of the class "
                f"{self.classes.names[config.void]!r}: choose an id without a class, or null"
            )
        if folder.framing.resize == "pad" and config.void is None:
            raise UserError("data.resize pad needs conditions.map.void, an id for the padding: set it to 255")
        self._maps = folder.places.companions(folder.scan.files, config.folder)
        for file, path in self._maps.items():
            self._check_size(folder.places.place(file), path)

    def describe(self) -> MapInput:
        """Names and colours for the model's config.yaml."""
        names = self.classes.names
        palette = self.classes.colours or self._palette() or standard_palette(len(names))
        return MapInput(names=names, palette=palette, void=self.config.void)

    def described_lines(self) -> tuple[str, ...]:
        """The lines of a list of the classes: names, with their colours where maps are in colour."""
        colours = self.classes.colours
        if colours is None:
            return self.classes.names
        return tuple(f"{name} {hex_of(colour)}" for name, colour in zip(self.classes.names, colours, strict=True))

    def __call__(self, index: int, seed: int | None) -> dict[str, Any]:
        file = self.folder.scan.files[index]
        ids = read_ids(self._maps[file], self.classes, self.config.void)
        framing = self.folder.framing_of(file)
        framed = framing.finish(framing.prepare_map(ids, self.config.void or 0), seed)
        return {"map": torch.from_numpy(framed[0].copy())}

    @cached_property
    def _hashes(self) -> list[bytes]:
        return content_hashes(list(self._maps.values()), self.folder.cache)

    def fingerprint(self) -> str:
        facts = (self._hashes, self.classes, self.config.void)
        return blake2b(repr(facts).encode(), digest_size=16).hexdigest()

    def _check_size(self, image: ImageFile, path: ImageFile) -> None:
        try:
            size, image_size = displayed_size(path), displayed_size(image)
        except UnreadableImage as error:
            raise UserError(f"map {path} of {image} cannot be read ({error.reason}): save it as PNG") from None
        if size != image_size:
            raise UserError(
                f"map {path} is {size[0]}x{size[1]} (height x width), but its image {image} is "
                f"{image_size[0]}x{image_size[1]}: save both at one size"
            )

    def _palette(self) -> tuple[tuple[int, int, int], ...] | None:
        """The colours of the first map, if it has a palette for all classes."""
        with opened(next(iter(self._maps.values()))) as image:
            values = image.getpalette("RGB") if image.mode == "P" else None
        count = len(self.classes.names)
        if values is None or len(values) < 3 * count:
            return None
        return tuple((values[3 * i], values[3 * i + 1], values[3 * i + 2]) for i in range(count))
