"""Cached latents: the posterior moments of a whole set in one memory-mapped file, with every example's fields.

A cache is a folder of
  header.json       `LatentHeader`: which autoencoder and data it belongs to, shapes, number of rows
  moments.npy       float16 (variants, N, M, h, w); variant 1 is the mirrored image
  state.npy         uint8 (variants, N): 0 to do, 1 done, 2 unreadable
  fields.jsonl      one object a row: text, label, further columns
  field-NAME.npy    (N, ...) for every field that is a tensor
  statistics.json   per-channel mean and standard deviation of the sampled latent
While it is written its name ends in .partial and fields are in fields-PART.jsonl, a line a row in any order.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from torch import Tensor

from sfumato.data.dataset import Blocks, LatentExample, Source, UnreadableImage
from sfumato.data.transforms import flips
from sfumato.errors import UserError
from sfumato.schema import Schema

TODO, DONE, UNREADABLE = 0, 1, 2


class TensorField(Schema):
    """A field stored as an array: NumPy dtype name and the shape of one row."""

    dtype: str
    shape: tuple[int, ...]


class LatentHeader(Schema):
    """What a cache belongs to, and its shapes.

    `autoencoder` is the hash of the encoder's weights, `data` the fingerprint of the set. `shape` is (M, h, w) of one
    row; `variational`: M = 2 C, mean and log-variance; else M = C. `mirrored` adds a row for the
    flipped image. `about` is for the reader: image size, configuration names.
    """

    format: Literal[1] = 1
    autoencoder: str
    data: str
    count: int
    shape: tuple[int, int, int]
    variational: bool
    mirrored: bool = False
    dtype: Literal["float16"] = "float16"
    classes: tuple[str, ...] | None = None
    tensors: dict[str, TensorField] = Field(default_factory=dict)
    about: dict[str, str | int | float] = Field(default_factory=dict)

    @property
    def variants(self) -> int:
        return 2 if self.mirrored else 1

    def key(self) -> str:
        """Hash of the header, for use in a folder's name."""
        return blake2b(self.model_dump_json().encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation (C,), float64, of a latent sampled from the cached posteriors."""

    mean: Tensor
    std: Tensor


class MeasuredLatents(Source[LatentExample], Protocol):
    """Cached latents whose statistics are known."""

    def statistics(self) -> Statistics: ...


def tensor_fields(fields: Mapping[str, Any]) -> dict[str, TensorField]:
    """Which of one example's fields are tensors, for `LatentHeader.tensors`."""
    arrays = {name: value.numpy() for name, value in fields.items() if isinstance(value, Tensor)}
    return {name: TensorField(dtype=array.dtype.name, shape=array.shape) for name, array in arrays.items()}


def read_header(folder: Path) -> LatentHeader:
    """The header of a finished or unfinished cache; UserError if it is not one."""
    try:
        return LatentHeader.model_validate_json((folder / "header.json").read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        raise UserError(f"{folder} is not a latent cache of this version: encode the data again") from None


def partial_path(path: Path) -> Path:
    """The path of the cache until it is finished."""
    return path.with_name(path.name + ".partial")


def compute_statistics(
    moments: NDArray[np.float16], state: NDArray[np.uint8], variational: bool, chunk: int = 256
) -> Statistics:
    """Statistics of the rows that are done, over examples and positions, in float64.

    For a sampled latent: mean = E[mean], variance = Var[mean] + E[exp(logvar)] (law of total variance). Moments
    (V, N, M, h, w), state (V, N). Raises UserError if no row is done.
    """
    V, N, M = moments.shape[:3]
    C = M // 2 if variational else M
    place = moments[:, :, 0].size // max(1, V * N)
    count = 0
    centre = np.zeros(C)
    spread = np.zeros(C)  # sum of squared distances from the centre
    noise = np.zeros(C)
    for variant in range(V):
        for start in range(0, N, chunk):
            keep = state[variant, start : start + chunk] == DONE
            rows = np.asarray(moments[variant, start : start + chunk])[keep].astype(np.float64)
            if not len(rows):
                continue
            means = rows[:, :C]
            n = len(rows) * place
            shift = means.mean((0, 2, 3)) - centre
            # Chan et al. 1979: joins the chunk's moments to the running ones without cancellation
            spread += means.var((0, 2, 3)) * n + shift**2 * count * n / (count + n)
            centre += shift * n / (count + n)
            count += n
            if variational:
                noise += np.exp(rows[:, C:]).sum((0, 2, 3))
    if count == 0:
        raise UserError("no image of the data set could be encoded, so its latents have no statistics")
    return Statistics(torch.from_numpy(centre), torch.from_numpy(np.sqrt((spread + noise) / count)))


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
        shape = (header.variants, header.count, *header.shape)
        self._moments = _mapped(path, "moments", np.dtype(header.dtype), shape)
        self._state = np.array(_mapped(path, "state", np.dtype(np.uint8), shape[:2]))
        self._tensors = {
            name: _mapped(path, f"field-{name}", np.dtype(field.dtype), (header.count, *field.shape))
            for name, field in header.tensors.items()
        }
        self._columns = _read_columns(path, header.count)

    @property
    def fields(self) -> tuple[str, ...]:
        return (*self._columns, *self._tensors)

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
        moments = torch.from_numpy(np.array(self._moments[variant, index]))
        return LatentExample(moments, self.describe(index))

    def describe(self, index: int) -> dict[str, Any]:
        """The fields of a row."""
        arrays = {name: torch.from_numpy(np.array(array[index])) for name, array in self._tensors.items()}
        return {name: values[index] for name, values in self._columns.items()} | arrays

    def blocks(self) -> Blocks | None:
        return self._blocks

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


def _mapped(path: Path, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """A read-only array of the cache; UserError if it is damaged."""
    try:
        array: NDArray[Any] = np.load(path / f"{name}.npy", mmap_mode="r")
    except (OSError, ValueError):
        raise UserError(f"latent cache {path} is damaged ({name}.npy cannot be read): encode the data again") from None
    if array.dtype != dtype or array.shape != shape:
        raise UserError(
            f"latent cache {path} is damaged ({name}.npy has shape {array.shape}, not {shape}): encode the data again"
        )
    return array


def _read_columns(path: Path, count: int) -> dict[str, list[Any]]:
    with (path / "fields.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    if len(rows) != count:
        raise UserError(f"latent cache {path} is damaged ({len(rows)} of {count} lines in fields.jsonl): encode again")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}
