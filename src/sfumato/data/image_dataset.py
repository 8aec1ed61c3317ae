"""A set of stored images: those of a folder, of shards, of tables."""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from sfumato.data.buckets import nearest
from sfumato.data.captions import Choices
from sfumato.data.dataset import Blocks, Buckets, Example, Progress, UnreadableImage
from sfumato.data.images_config import ImagesConfig
from sfumato.data.labels import Labels
from sfumato.data.places import Places
from sfumato.data.reading import decode_reduced
from sfumato.data.scan import Scan
from sfumato.data.transforms import Framing, Pixels


class ImageDataset:
    """Images found by a scan, decoded at each reading; see `pixels.keep_decoded` for keeping them.

    Indexing gives the centre crop without flip, `variant` the random crop and flip that the configuration asks for.
    A file that turns out damaged raises UnreadableImage and is noted in `unreadable` as (path, reason).
    """

    def __init__(
        self,
        config: ImagesConfig,
        scan: Scan,
        places: Places,
        cache: Path | None = None,
        hashing: Progress | None = None,
    ) -> None:
        """The images of a scan, read from `places`.

        The hashes of its files are computed when needed and cached in `cache`; `hashing` is called with the progress.
        """
        self.config = config
        self.cache = cache
        self._hashing = hashing
        self.scan, self.places = scan, places
        self.framing = config.framing()
        self._buckets = (
            None if config.buckets is None else nearest(config.sizes, [seen.upright for seen in scan.headers])
        )
        self._sizes = (
            {} if self._buckets is None else dict(zip(scan.files, map(self._buckets.of, range(len(self))), strict=True))
        )
        self._read: Callable[[str], Pixels] = self.decode
        self._damaged: dict[str, str] = {}

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.scan.classes

    @property
    def fields(self) -> tuple[str, ...]:
        scan = self.scan
        known = [name for name, has in (("text", scan.texts), ("label", scan.labels)) if has is not None]
        return (*known, *scan.columns)

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """(path, reason) of every file found damaged so far, by the scan or on reading."""
        return [*self.scan.unreadable, *sorted(self._damaged.copy().items())]

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about the images that the user should see."""
        return self.scan.notes

    def __len__(self) -> int:
        return len(self.scan.files)

    def __getitem__(self, index: int) -> Example:
        return self._finish(self._prepared(index), index, None)

    def variant(self, index: int, seed: int) -> Example:
        return self._finish(self._prepared(index), index, seed)

    def name(self, index: int) -> str:
        """The file's path relative to the folder, or its name in the set."""
        return self.scan.files[index]

    def framing_of(self, file: str) -> Framing:
        """How an image is resized and cropped: to the size of its bucket, where there are several sizes."""
        return replace(self.framing, size=self._sizes[file]) if self._sizes else self.framing

    def describe(self, index: int) -> dict[str, Any]:
        """The example's fields, without reading its image."""
        scan = self.scan
        fields: dict[str, Any] = {}
        if scan.texts is not None:
            fields["text"] = scan.texts[index]
        if scan.labels is not None:
            fields["label"] = scan.labels[index]
        return fields | {name: values[index] for name, values in scan.columns.items()}

    def decode(self, file: str) -> Pixels:
        """The file decoded and resized, before any random crop; what the pixel cache keeps."""
        path = self.places.place(file)
        framing = self.framing_of(file)
        H, W = framing.size
        try:
            # twice the size leaves the resize enough to filter after a JPEG's reduced decoding
            read = decode_reduced(path, framing.background, (2 * H, 2 * W), self.config.max_pixels)
            pixels = framing.prepare(read.image, read.size)
            read.image.close()  # images of files are parts of reference cycles: their memory would be freed much later
            return pixels
        except UnreadableImage as error:
            raise UnreadableImage(file, error.reason) from error
        except Exception as error:
            error.add_note(f"while reading {path}")
            raise

    def reading(self, read: Callable[[str], Pixels], damaged: Mapping[str, str]) -> "ImageDataset":
        """The same set with another function from a file's relative path to `decode`'s result."""
        other = copy(self)
        other._read = read
        other._damaged = {**self._damaged, **damaged}
        return other

    def _prepared(self, index: int) -> Pixels:
        try:
            return self._read(self.scan.files[index])
        except UnreadableImage as error:
            self._damaged[error.path] = error.reason
            raise

    def _finish(self, pixels: Pixels, index: int, seed: int | None) -> Example:
        """The example made of prepared pixels."""
        # a copy: mirrored arrays have negative strides, which torch refuses, and cached ones are read-only
        framing = self.framing_of(self.name(index))
        return Example(torch.from_numpy(framing.finish(pixels, seed).copy()), self.describe(index))

    def blocks(self) -> Blocks | None:
        """Rows that are stored together; None where each image is a file of its own."""
        return self.scan.blocks

    def buckets(self) -> Buckets | None:
        """The sizes of the images, if `data.buckets` asks for several."""
        return self._buckets

    def captions(self) -> list[str] | None:
        return None if self.scan.texts is None else list(self.scan.texts)

    def caption_choices(self) -> tuple[Choices, ...] | None:
        """All captions of each image with their weights."""
        return self.scan.captions

    def labels(self) -> list[int] | None:
        return None if self.scan.labels is None else list(self.scan.labels)

    def label_counts(self) -> dict[str, int] | None:
        """Images per class, by name."""
        if self.scan.labels is None or self.scan.classes is None:
            return None
        return Labels(self.scan.labels, self.scan.classes).counts()

    @cached_property
    def hashes(self) -> dict[str, bytes]:
        """The hash of each file's whole content, by its relative path; read once for all sets made of this one."""
        files = list(dict.fromkeys(self.scan.files))
        found = self.places.hashes(files, self.cache, self._hashing)
        return dict(zip(files, found, strict=True))

    def pixel_key(self) -> str:
        """Hash of what determines the prepared pixels: names and whole content of the files, framing.

        Neither the folder's path nor times of modification enter: a moved, copied or touched folder is still the same.
        """
        framing = self.framing
        digest = blake2b(digest_size=16)
        digest.update(repr((framing.size, framing.resize, framing.crop, framing.filter, framing.background)).encode())
        if self._buckets is not None:
            digest.update(repr((self._buckets.sizes, self._buckets.rows.tolist())).encode())
        for name, seen in zip(self.scan.files, self.scan.headers, strict=True):
            # the remark shows that pixels are converted, which earlier versions did not do
            digest.update(name.encode(errors="surrogateescape") + b"\0" + self.hashes[name] + seen.remark.encode())
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """Hash of the pixels' key, the flip and all fields."""
        scan = self.scan
        fields = (
            self.pixel_key(),
            self.framing.flip,
            scan.texts,
            scan.labels,
            scan.classes,
            sorted(scan.columns.items()),
        )
        return blake2b(repr(fields).encode(errors="surrogateescape"), digest_size=16).hexdigest()
