"""Real images to measure against, by the options of the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfumato.data.dataset import Dataset, Progress
    from sfumato.data.image_dataset import ImageDataset
    from sfumato.data.toyworld.dataset import ToyWorldConfig
    from sfumato.data.toyworld.scene import Split
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

    The toy world is the one that the model was trained on, if it was.
    """
    from sfumato.data.toyworld.dataset import ToyWorldConfig
    from sfumato.errors import UserError

    name, _, split = data.partition(":")
    if name != TOY or Path(data).exists():
        return opened_folder(Path(data), size, pad, background, scanning)
    if split not in ("", "train", "held-out"):
        raise UserError(f"DATA {data!r}: the toy world's parts are toy:train and toy:held-out")
    world = (None if model is None else known_world(model)) or ToyWorldConfig(length=10_000)
    length = min(world.length, 10_000) if split == "held-out" else world.length
    part: Split = "held-out" if split == "held-out" else "train"
    return world.model_copy(update={"size": size, "length": length, "split": part}).build()


def known_world(model: "LatentDiffusion") -> "ToyWorldConfig | None":
    """The toy world that a model was trained on, with its words; None where it was trained on something else.

    Raises UserError where the model's record of it is damaged.
    """
    from sfumato.config import parse
    from sfumato.data.toyworld.dataset import ToyWorldConfig

    for stage in ("diffusion", "autoencoder"):
        trained = model.config.about.get(stage)
        data = trained.get("data") if isinstance(trained, dict) else None
        if isinstance(data, dict):
            return parse(data, ToyWorldConfig, f"about.{stage}.data") if data.get("kind") == TOY else None
    return None


def opened_folder(
    folder: Path, size: tuple[int, int], pad: bool, background: str, scanning: "Progress | None" = None
) -> "ImageDataset":
    """The images of a folder, or of shards and tables, at a size. Raises UserError if there are none."""
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
        f"the images in {str(folder)!r} have {len(sizes)} sizes, such as {_several(list(sizes)[:3])}: "
        "give --size to resize them all"
    )


def _several(sizes: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{h}x{w}" for h, w in sizes)
