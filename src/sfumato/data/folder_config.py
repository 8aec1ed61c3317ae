"""The configuration of a folder of images."""

from pathlib import Path
from typing import Literal

from sfumato.data.images_config import ImagesConfig


class FolderConfig(ImagesConfig):
    """A folder of images and their preprocessing to (3, H, W); `size` is the side of a square or (H, W).

    Example:
        >>> sfumato.FolderConfig(path="images", size=(64, 96), flip=True).background
        'white'
    """

    kind: Literal["folder"] = "folder"
    path: Path
    leave_out: tuple[str, ...] = ()
    """Sub-folders and single files that are not part of the dataset."""
    only: str | None = None
    """A text file that lists the images of the dataset, one per line; all others are left out."""
    captions_file: str | None = None
    """A file with captions: COCO's `captions_*.json`, or lines of objects with `image_id` and `caption`."""
