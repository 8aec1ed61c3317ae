"""Cached latents: the posterior moments of a whole set in one memory-mapped file, with every example's fields.

A cache is a folder of
  header.json       `LatentHeader`: which autoencoder and data it belongs to, shapes, number of rows
  moments.npy       float16 (variants, N, M, h, w); variant 1 is the mirrored image
  state.npy         uint8 (variants, N): 0 to do, 1 done, 2 unreadable
  fields.jsonl      one object a row: text, label, further columns
  field-NAME.npy    (N, ...) for every field that is a tensor
  group.npy, place.npy  where images have several sizes: (N,) the number of a row's size, and its place among those of
                    that size, which are in moments-HxW.npy and field-NAME-HxW.npy
  statistics.json   per-channel mean and standard deviation of the sampled latent
Large caches are split into files of `rows_per_file` rows, whose names end in -00000 and so on.
While it is written its name ends in .partial and fields are in fields-PART.jsonl, a line a row in any order.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.data.dataset import Blocks, Buckets, LatentExample, Source, UnreadableImage
from sfumato.data.latent_arrays import LatentArrays, mapped, state_file
from sfumato.data.latent_header import partial_path, read_header
from sfumato.data.transforms import flips
from sfumato.errors import UserError

TODO, DONE, UNREADABLE = 0, 1, 2


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation (C,), float64, of a latent sampled from the cached posteriors."""

    mean: Tensor
    std: Tensor


class MeasuredLatents(Source[LatentExample], Protocol):
    """Cached latents whose statistics are known."""

    def statistics(self) -> Statistics: ...


def compute_statistics(
    moments: NDArray[np.float16], state: NDArray[np.uint8], variational: bool, chunk: int = 256
) -> Statistics:
    """Statistics of the rows that are done, over examples and positions, in float64.

    For a sampled latent: mean = E[mean], variance = Var[mean] + E[exp(logvar)] (law of total variance). Moments
    (V, N, M, h, w), state (V, N). Raises UserError if no row is done.
    """
    return statistics_of([(moments, state)], variational, chunk)


def statistics_of(
    parts: Iterable[tuple[NDArray[np.float16], NDArray[np.uint8]]], variational: bool, chunk: int = 256
) -> Statistics:
    """As `compute_statistics`, over several arrays; each position counts as much as any other."""
    count = 0
    centre: NDArray[np.float64] | float = 0.0
    spread: NDArray[np.float64] | float = 0.0  # sum of squared distances from the centre
    noise: NDArray[np.float64] | float = 0.0
    for rows in _chunks_done(parts, chunk):
        C = rows.shape[1] // 2 if variational else rows.shape[1]
        means = rows[:, :C]
        n = means[:, 0].size
        shift = means.mean((0, 2, 3)) - centre
        # Chan et al. 1979: joins the chunk's moments to the running ones without cancellation
        spread = spread + (means.var((0, 2, 3)) * n + shift**2 * count * n / (count + n))
        centre = centre + shift * n / (count + n)
        count += n
        if variational:
            noise = noise + np.exp(rows[:, C:]).sum((0, 2, 3))
    if count == 0:
        raise UserError("no image of the dataset could be encoded, so its latents have no statistics")
    return Statistics(torch.from_numpy(np.asarray(centre)), torch.from_numpy(np.sqrt((spread + noise) / count)))


def _chunks_done(
    parts: Iterable[tuple[NDArray[np.float16], NDArray[np.uint8]]], chunk: int
) -> Iterator[NDArray[np.float64]]:
    """The rows that are done, float64, some at a time."""
    for moments, state in parts:
        for variant in range(len(moments)):
            for start in range(0, moments.shape[1], chunk):
                keep = state[variant, start : start + chunk] == DONE
                rows = np.asarray(moments[variant, start : start + chunk])[keep].astype(np.float64)
                if len(rows):
                    yield rows


class LatentDataset:
    """A finished cache as a set of examples: the image's latent by index, its or the mirrored one's by `variant`.

    Rows are those of the set it was made from; one whose image was unreadable raises UnreadableImage.
    """

    def __init__(
        self, path: Path, autoencoder: str | None = None, data: str | None = None, blocks: Blocks | None = None
    ) -> None:
        """Opens and checks the cache; UserError if it is unfinished, damaged, or of another autoencoder or data.

        `blocks` are those of the set it was made from, whose neighbours are read at about the same time.
        """
        if not path.is_dir():
            unfinished = partial_path(path).is_dir()
            state = (
                "is not finished: run the encoding again to continue" if unfinished else "does not exist: encode first"
            )
            raise UserError(f"latent cache {path} {state}")
        self.path = path
        self._blocks = blocks
        self.header = header = read_header(path)
        for name, expected, stored in (
            ("autoencoder", autoencoder, header.autoencoder),
            ("data", data, header.data),
        ):
            if expected is not None and expected != stored:
                raise UserError(
                    f"latent cache {path} was made with {name} {stored[:12]}, but this is {name} {expected[:12]}: "
                    "encode the data again"
                )
        self._arrays = LatentArrays(path, header, "r")
        self._state = np.array(mapped(path, state_file(header), "r"))
        self._buckets = None
        if header.groups:
            groups = self._arrays.groups
            assert groups is not None
            self._buckets = Buckets(tuple(group.size for group in header.groups), groups)
        self._columns = _read_columns(path, header.count)

    @property
    def fields(self) -> tuple[str, ...]:
        return (*self._columns, *self.header.tensors)

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.header.classes

    @property
    def unreadable(self) -> list[int]:
        """Rows without a latent."""
        return np.flatnonzero((self._state == UNREADABLE).any(0)).tolist()

    def __len__(self) -> int:
        return self.header.count

    def __getitem__(self, index: int) -> LatentExample:
        return self.row(index, False)

    def variant(self, index: int, seed: int) -> LatentExample:
        """Mirrored or not, as the same seed's variant of the image would be."""
        return self.row(index, self.header.mirrored and flips(seed))

    def row(self, index: int, mirrored: bool) -> LatentExample:
        """The latent of an image or of its mirror image; fields are the image's either way."""
        variant = int(mirrored)
        if self._state[variant, index] != DONE:
            raise UnreadableImage(f"row {index} of {self.path}", "its image could not be read when it was encoded")
        moments = torch.from_numpy(self._arrays.moments(variant, index))
        return LatentExample(moments, self.describe(index))

    def describe(self, index: int) -> dict[str, Any]:
        """The fields of a row."""
        arrays = {name: torch.from_numpy(array) for name, array in self._arrays.tensors(index).items()}
        return {name: values[index] for name, values in self._columns.items()} | arrays

    def blocks(self) -> Blocks | None:
        return self._blocks

    def buckets(self) -> Buckets | None:
        """The sizes of the rows' images, if they have several."""
        return self._buckets

    def captions(self) -> list[str] | None:
        """All texts in order, "" for unreadable rows; None without text."""
        texts = self._columns.get("text")
        return None if texts is None else [text or "" for text in texts]

    def labels_seen(self) -> tuple[int, ...] | None:
        """The labels that occur, ascending, unreadable rows aside; None without labels."""
        labels = self._columns.get("label")
        return None if labels is None else tuple(sorted({int(label) for label in labels if label is not None}))

    def fingerprint(self) -> str:
        return self.header.key()

    def statistics(self) -> Statistics:
        """As `compute_statistics` found them when the cache was finished."""
        stored = json.loads((self.path / "statistics.json").read_text())
        return Statistics(*(torch.tensor(stored[name], dtype=torch.float64) for name in ("mean", "std")))


def _read_columns(path: Path, count: int) -> dict[str, list[Any]]:
    with (path / "fields.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    if len(rows) != count:
        raise UserError(f"latent cache {path} is damaged ({len(rows)} of {count} lines in fields.jsonl): encode again")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}
