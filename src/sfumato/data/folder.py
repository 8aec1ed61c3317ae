"""A folder of images in any usual convention: class sub-folders, metadata files, side-car captions, or none of it."""

from pathlib import Path

from sfumato.data.dataset import Progress
from sfumato.data.folder_config import FolderConfig
from sfumato.data.image_dataset import ImageDataset
from sfumato.data.places import FolderPlaces
from sfumato.data.scan import scan_folder


class FolderDataset(ImageDataset):
    """The images of a folder.

    Example:
        >>> images = sfumato.FolderDataset(sfumato.FolderConfig(path="images", size=64))
        >>> len(images), images[0].image.shape, images[0].fields["text"]
        (3, torch.Size([3, 64, 64]), 'a red square')
    """

    def __init__(
        self,
        config: FolderConfig,
        progress: Progress | None = None,
        cache: Path | None = None,
        hashing: Progress | None = None,
    ) -> None:
        """Scans the folder; raises UserError as `scan_folder` does."""
        super().__init__(config, scan_folder(config, progress), FolderPlaces(config.path), cache, hashing)
