"""Images as numbered files of a folder: each under the first free number, then a sheet of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sfumato.cli.numbering import beside, next_number, number_of, numbered, sheets
from sfumato.counts import how_many

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


WIDEST = 16
"""Images in a row of a sheet at most."""


class NumberedImages:
    """The images that a command writes into a folder, which may be in use: what is there stays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first = next_number(folder)
        self.written: list[Path] = []

    def add(self, image: "Tensor | Image", facts: Mapping[str, Any], **how: Any) -> Path:
        """Writes an image in its mode: PNG where that has it, else TIFF, which holds no facts.

        `how`: what makes it again, the arguments of `sfumato.provenance.texts_of`.
        """
        from torch import Tensor

        from sfumato.images import PNG_MODES, save_first_free

        if self.first and not self.written:
            typer.echo(f"{self.folder} already holds images: numbering continues at {self.first:04d}", err=True)
        suffix = ".png" if isinstance(image, Tensor) or image.mode in PNG_MODES else ".tif"
        number = number_of(self.written[-1]) + 1 if self.written else self.first
        texts = texts_of_image(image, facts, how)
        self.written.append(save_first_free(numbered(self.folder, number, suffix), image, texts))
        return self.written[-1]

    def add_sheet(self, image: "Tensor", facts: Mapping[str, Any]) -> Path:
        """Writes the sheet of the images under the number of the first of them."""
        from sfumato.images import save_first_free

        return save_first_free(sheets(self.folder, number_of(self.written[0])), image, texts_of_image(image, facts, {}))

    def add_strip(self, image: "Tensor", facts: Mapping[str, Any]) -> Path:
        """Writes a strip of the images."""
        from sfumato.images import save_first_free

        return save_first_free(self.beside("strip"), image, texts_of_image(image, facts, {}))

    def beside(self, kind: str, suffix: str = ".png") -> Iterator[Path]:
        """The names of what belongs to the images, such as `strip.png`, or `strip-0004.png` of those from 4 on."""
        number = number_of(self.written[0])
        if number == 0:
            yield self.folder / f"{kind}{suffix}"
        yield from beside(self.folder, kind, number, suffix)

    @property
    def names(self) -> str:
        """The first and the last."""
        names = [path.name for path in self.written]
        return names[0] + (f" to {names[-1]}" if len(names) > 1 else "")


def texts_of_image(image: "Tensor | Image", facts: Mapping[str, Any], how: Mapping[str, Any]) -> dict[str, str]:
    """The texts written into an image; `how` as of `NumberedImages.add`."""
    from torch import Tensor

    from sfumato.provenance import texts_of

    size = (image.shape[-1], image.shape[-2]) if isinstance(image, Tensor) else image.size
    return texts_of(facts, size=size, **how)


def model_name(path: Path) -> str:
    """The name of a model folder, or of the run that it belongs to."""
    resolved = path.resolve()
    return resolved.parent.name if resolved.name == "model" else resolved.name


def sheet_of(images: "Iterable[Tensor]", columns: int | None = None) -> "Tensor":
    """Images (3, H, W) of one size as one; nearly square, rather wide, where no number of columns is given."""
    import torch

    from sfumato.cli.options import columns_of
    from sfumato.images import image_grid

    stacked = torch.stack(list(images))
    return image_grid(stacked, columns or columns_of(len(stacked)))


def row_of_each(*conditions: Sequence[object] | None) -> int | None:
    """How many images a row of the sheet has, if each of several prompts or labels gets a row of its own.

    `conditions` are prompts and labels, an entry for each image in their order. None unless all have the same number of
    images, from 2 to `WIDEST`.
    """
    lengths = [len(list(images)) for _, images in groupby(zip_longest(*(each or () for each in conditions)))]
    equal = len(lengths) > 1 and len(set(lengths)) == 1
    return lengths[0] if equal and 2 <= lengths[0] <= WIDEST else None


def images_in(count: int, seconds: float) -> str:
    """How many were made in which time."""
    return f"{how_many(count, 'image')} in {seconds:.1f} s, {count / seconds:.1f} a second"
