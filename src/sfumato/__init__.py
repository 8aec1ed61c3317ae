"""sfumato: latent diffusion models you can train from a folder of images.

The public names are imported on first use, so that `import sfumato` (and the command line's --help) stays fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "LatentDiffusion": "sfumato.model",
    "load": "sfumato.model_folder",
    "load_classifier": "sfumato.classifier",
    "load_snapshot": "sfumato.training.averages.snapshots",
    "Autoencoder": "sfumato.autoencoder.model",
    "AutoencoderConfig": "sfumato.autoencoder.model",
    "UNet": "sfumato.denoiser.unet",
    "UNetConfig": "sfumato.denoiser.unet",
    "Condition": "sfumato.conditioning.condition",
    "ToyWorld": "sfumato.data.toyworld.dataset",
    "FolderDataset": "sfumato.data.folder",
    "UserError": "sfumato.errors",
}

_ROOMS = ("tasks",)
"""Subpackages available as attributes, as in `sfumato.tasks.inpaint`."""

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from sfumato.classifier import load_classifier as load_classifier
    from sfumato.model import LatentDiffusion as LatentDiffusion
    from sfumato.model_folder import load as load
    from sfumato.training.averages.snapshots import load_snapshot as load_snapshot


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"sfumato.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
