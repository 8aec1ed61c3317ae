"""sfumato: latent diffusion models you can train from a folder of images.

The names in `__all__`, and those of `sfumato.tasks`, are the public interface: docs/api-stability.md explains what that
promises. They are imported on first use, so that `import sfumato` (and the command line's --help) stays fast.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Autoencoder": "sfumato.autoencoder.model",
    "AutoencoderConfig": "sfumato.autoencoder.model",
    "Condition": "sfumato.conditioning.condition",
    "ConditionSpec": "sfumato.conditioning.condition",
    "FolderConfig": "sfumato.data.folder_config",
    "FolderDataset": "sfumato.data.folder",
    "LatentDiffusion": "sfumato.model",
    "ModelConfig": "sfumato.model_config",
    "SampleRequest": "sfumato.pipeline.request",
    "ToyWorld": "sfumato.data.toyworld.dataset",
    "UNet": "sfumato.denoiser.unet",
    "UNetConfig": "sfumato.denoiser.unet",
    "UserError": "sfumato.errors",
    "export_model": "sfumato.interop.convert",
    "import_model": "sfumato.interop.convert",
    "load": "sfumato.model_folder",
    "load_classifier": "sfumato.classifier",
    "load_snapshot": "sfumato.training.averages.snapshots",
}

_ROOMS = ("tasks",)
"""Subpackages available as attributes, as in `sfumato.tasks.inpaint`."""

_DEPRECATED: dict[str, tuple[str, str]] = {}
"""Former name -> (name in `_HOMES` that replaces it, version that deprecated it)."""

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "Condition",
    "ConditionSpec",
    "FolderConfig",
    "FolderDataset",
    "LatentDiffusion",
    "ModelConfig",
    "SampleRequest",
    "ToyWorld",
    "UNet",
    "UNetConfig",
    "UserError",
    "__version__",
    "export_model",
    "import_model",
    "load",
    "load_classifier",
    "load_snapshot",
    "tasks",
]

if TYPE_CHECKING:
    from sfumato import tasks as tasks
    from sfumato.autoencoder.model import Autoencoder as Autoencoder
    from sfumato.autoencoder.model import AutoencoderConfig as AutoencoderConfig
    from sfumato.classifier import load_classifier as load_classifier
    from sfumato.conditioning.condition import Condition as Condition
    from sfumato.conditioning.condition import ConditionSpec as ConditionSpec
    from sfumato.data.folder import FolderDataset as FolderDataset
    from sfumato.data.folder_config import FolderConfig as FolderConfig
    from sfumato.data.toyworld.dataset import ToyWorld as ToyWorld
    from sfumato.denoiser.unet import UNet as UNet
    from sfumato.denoiser.unet import UNetConfig as UNetConfig
    from sfumato.errors import UserError as UserError
    from sfumato.interop.convert import export_model as export_model
    from sfumato.interop.convert import import_model as import_model
    from sfumato.model import LatentDiffusion as LatentDiffusion
    from sfumato.model_config import ModelConfig as ModelConfig
    from sfumato.model_folder import load as load
    from sfumato.pipeline.request import SampleRequest as SampleRequest
    from sfumato.training.averages.snapshots import load_snapshot as load_snapshot


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"sfumato.{name}")
    if name in _DEPRECATED:
        replacement, since = _DEPRECATED[name]
        warnings.warn(
            f"sfumato.{name} is deprecated since {since}: use sfumato.{replacement}", DeprecationWarning, stacklevel=2
        )
        name = replacement
    if name not in _HOMES:
        raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
