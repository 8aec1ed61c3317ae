"""Real images to measure against, by the options of the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfumato.data.dataset import Dataset, Progress
    from sfumato.data.image_dataset import ImageDataset
    from sfumato.model import LatentDiffusion

TOY = "toy"


def opened_data(
    data: str,
    size: tuple[int, int],
    pad: bool,
    background: str,
    model: "LatentDiffusion | None" = None,
    scanning: "Progress | None" = None,
) -> "Dataset":
    """A folder at a size (H, W), or the toy world: toy, toy:held-out. Raises UserError where there is neither.

    The toy world has the seed and the length of the one that the model was trained on.
    """
    from sfumato.data.toyworld.dataset import ToyWorldConfig
    from sfumato.errors import UserError

    name, _, split = data.partition(":")
    if name != TOY or Path(data).exists():
        return opened_folder(Path(data), size, pad, background, scanning)
    if split not in ("", "train", "held-out"):
        raise UserError(f"DATA {data!r}: the toy world's parts are toy:train and toy:held-out")
    about = {} if model is None else model.config.about.get("autoencoder", {}).get("data", {})
    trained = about if about.get("kind") == TOY else {}
    length = int(trained.get("length", 10_000))
    if split == "held-out":
        length = min(length, 10_000)
    return ToyWorldConfig(
        size=size, length=length, seed=int(trained.get("seed", 0)), split="held-out" if split == "held-out" else "train"
    ).build()


def opened_folder(
    folder: Path, size: tuple[int, int], pad: bool, background: str, scanning: "Progress | None" = None
) -> "ImageDataset":
    """The images of a folder, or of shards and tables, at a size. Raises UserError where there are none."""
    from sfumato.cli.data import stored_config
    from sfumato.data.reading import colour
    from sfumato.data.table import open_images

    colour(background)
    given = {"path": str(folder), "size": list(size), "resize": "pad" if pad else "crop", "background": background}
    return open_images(stored_config(given), scanning=scanning)


def own_size(folder: Path) -> tuple[int, int]:
    """(H, W) of a folder's images. Raises UserError where they differ, as no frame follows from them then."""
    from collections import Counter

    from sfumato.data.folder_config import FolderConfig
    from sfumato.data.scan import scan_folder
    from sfumato.errors import UserError

    headers = scan_folder(FolderConfig(path=folder, size=1)).headers
    sizes = Counter((seen.height, seen.width) for seen in headers)
    if len(sizes) == 1:
        return next(iter(sizes))
    raise UserError(
        f"the images in {str(folder)!r} are of {len(sizes)} sizes, such as {_several(list(sizes)[:3])}: "
        "give --size, to which all are brought"
    )


def _several(sizes: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{h}x{w}" for h, w in sizes)
