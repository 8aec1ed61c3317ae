"""Images with holes, several masks an image, which are encoded before an inpainting model trains."""

from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sfumato.data.conditions.config import MaskConfig
from sfumato.data.conditions.holes import Hole, cells_of, random_hole
from sfumato.data.contents import file_hashes
from sfumato.data.dataset import Buckets, Dataset, Example, UnreadableImage, buckets_of
from sfumato.data.listing import list_files
from sfumato.data.masks import read_mask
from sfumato.data.opening import is_image
from sfumato.data.reading import open_ids, read_header
from sfumato.errors import UserError
from sfumato.rng import numpy_generator

_FILL = {"black": 0, "grey": 128}


class Holes:
    """Masks by number, (H, W) bool: random, or from a folder, independent of the image but for its size."""

    def __init__(
        self,
        config: MaskConfig,
        size: tuple[int, int],
        root: Path | None = None,
        further: tuple[tuple[int, int], ...] = (),
    ) -> None:
        """`size` is that of the images, `further` sizes those that some of them have instead.

        Raises UserError for a folder of masks that is missing, empty or cannot be read."""
        self.config, self.size, self._further = config, size, further
        self._files = () if config.folder is None else _mask_files(config.folder, root)

    def __call__(self, number: int, size: tuple[int, int] | None = None) -> Hole:
        """The mask of a number at another `size`, or at that of all images."""
        rng, size = numpy_generator(0, "mask", number), size or self.size
        if not self._files:
            return random_hole(self.config.kinds, size, rng)
        return _read_mask(self._files[int(rng.integers(len(self._files)))], size)

    @cached_property
    def _hashes(self) -> list[bytes]:
        return file_hashes(self._files)

    def fingerprint(self) -> str:
        facts = (self.config.model_dump_json(), self.size, self._hashes, *self._further)
        return blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def _mask_files(folder: str, root: Path | None) -> tuple[Path, ...]:
    if root is None:
        raise UserError(f"conditions.mask.folder is {folder!r}, but the data is not a folder: leave it out")
    place = root / folder
    found = tuple(place / name for name in list_files(place) if is_image(name))
    if not found:
        raise UserError(f"the folder of masks {place} holds no images: put masks there, white where the hole is")
    for path in found:
        try:
            read_header(path)
        except UnreadableImage as error:
            raise UserError(f"mask {path} cannot be read ({error.reason}): save it as PNG") from None
    return found


@lru_cache(maxsize=256)
def _read_mask(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The hole of a mask's file, (H, W) bool, resized by nearest neighbour; UserError if it is not a mask or has no
    hole."""
    try:
        image = open_ids(path)
    except UnreadableImage as error:
        raise UserError(f"mask {path} cannot be read ({error.reason}): save it as PNG") from None
    whole = Image.fromarray(read_mask(image, f"mask {path}").hole).convert("L")
    hole: NDArray[np.bool_] = np.asarray(whole.resize((size[1], size[0]), Image.Resampling.NEAREST)) > 0
    if not hole.any() or hole.all():
        what = "no hole" if not hole.any() else "nothing but hole"
        raise UserError(f"mask {path} has {what} at {size[0]}x{size[1]}: take it out of the folder or correct it")
    hole.flags.writeable = False
    return hole


class MaskedImages:
    """`variants` examples an image, one after the other, each with another hole filled; the field `mask`.

    `mask` is uint8 (1, h, w), 1 where a cell of the latent's grid is touched by the hole. Example i is of image
    i // variants, and its hole is a function of i.
    """

    fields: tuple[str, ...] = ("mask",)
    classes: tuple[str, ...] | None = None

    def __init__(self, images: Dataset, holes: Holes, factor: int) -> None:
        """`factor` is the autoencoder's."""
        self.images, self.holes, self.factor = images, holes, factor

    def __len__(self) -> int:
        return len(self.images) * self.holes.config.variants

    def __getitem__(self, index: int) -> Example:
        image = self.images[index // self.holes.config.variants].image
        hole = self.holes(index, (image.shape[1], image.shape[2]))
        filled = image.masked_fill(torch.from_numpy(hole.copy()), _FILL[self.holes.config.fill])
        cells = torch.from_numpy(cells_of(hole, self.factor).astype(np.uint8))
        return Example(filled, {"mask": cells[None]})

    def captions(self) -> list[str] | None:
        return None

    def buckets(self) -> Buckets | None:
        whole = buckets_of(self.images)
        return None if whole is None else whole.taken(np.repeat(range(len(self.images)), self.holes.config.variants))

    def fingerprint(self) -> str:
        parts = (self.images.fingerprint(), self.holes.fingerprint(), str(self.factor))
        return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
