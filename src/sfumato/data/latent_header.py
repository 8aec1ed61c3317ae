"""The header of a latent cache: its owner, and the shapes of its rows."""

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from torch import Tensor

from sfumato.errors import UserError
from sfumato.schema import Schema


class TensorField(Schema):
    """A field stored as an array: NumPy dtype name and the shape of one row."""

    dtype: str
    shape: tuple[int, ...]


class LatentGroup(Schema):
    """Rows of one shape: the size (H, W) of their images, (M, h, w) of their moments, their tensors."""

    size: tuple[int, int]
    shape: tuple[int, int, int]
    count: int
    tensors: dict[str, TensorField] = Field(default_factory=dict)


class LatentHeader(Schema):
    """The owner of a cache, and its shapes.

    `autoencoder` is the hash of the encoder's weights, `data` the fingerprint of the set. `shape` is (M, h, w) of one
    row; `variational`: M = 2 C, mean and log-variance; else M = C. `mirrored` adds a row for the
    flipped image. `about` is for the reader: image size, configuration names. `groups` are the shapes of rows that do
    not all have one, in order of the numbers in group.npy; `shape` and `tensors` are then those of the first.
    `rows_per_file` bounds the rows in a file; None: all in one.
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
    groups: tuple[LatentGroup, ...] = ()
    rows_per_file: int | None = Field(default=None, ge=1)

    @property
    def variants(self) -> int:
        return 2 if self.mirrored else 1

    @property
    def all_groups(self) -> tuple[LatentGroup, ...]:
        """The groups, or the one that holds all rows."""
        whole = LatentGroup(size=(0, 0), shape=self.shape, count=self.count, tensors=self.tensors)
        return self.groups or (whole,)

    def key(self) -> str:
        """Hash of what the rows are, for use in a folder's name; how they are stored does not enter."""
        # caches of one shape keep the keys that they had before there were groups
        left_out = {"rows_per_file"} if self.groups else {"rows_per_file", "groups"}
        return blake2b(self.model_dump_json(exclude=left_out).encode(), digest_size=16).hexdigest()


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
