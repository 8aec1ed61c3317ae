"""A diffusers folder: its pieces, and its configurations without its weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from sfumato.autoencoder.model import AutoencoderConfig
from sfumato.errors import UserError
from sfumato.foreign import short
from sfumato.interop.diffusers_component import read_json
from sfumato.interop.diffusers_config import ReadUNet, read_autoencoder, read_scheduler, read_unet
from sfumato.interop.diffusers_transformer import ReadTransformer, read_transformer
from sfumato.interop.members import inside
from sfumato.interop.original_yaml import first_problem

AUTOENCODER_FOLDERS = ("vae", "vqvae", "movq")
TRANSFORMER = "transformer"
Result = TypeVar("Result")


def is_diffusers_folder(path: Path) -> bool:
    """A pipeline (model_index.json), or one of its models (config.json with a class name).

    Raises UserError for a config.json that is a link out of the folder.
    """
    if (path / "model_index.json").is_file():
        return True
    config = path / "config.json"
    return config.is_file() and "_class_name" in read_json(inside(path, config))


def autoencoder_folder(path: Path, index: Mapping[str, Any]) -> Path:
    """The folder of a pipeline's autoencoder; raises UserError if there is none."""
    for name in AUTOENCODER_FOLDERS:
        if (path / name / "config.json").is_file():
            return path / name
    raise UserError(f"{path} is a pipeline ({index.get('_class_name')}) without autoencoder (vae or vqvae)")


def has_transformer(path: Path) -> bool:
    """Whether a pipeline's network is a transformer, not a U-Net."""
    return (path / TRANSFORMER).is_dir() and not (path / "unet").is_dir()


def checked(path: Path, read: Callable[[], Result]) -> Result:
    """The result of `read`; raises UserError for a configuration whose values have the wrong kind."""
    try:
        return read()
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{path}: a configuration lacks {short(error.args[0])}; is the folder complete?") from None
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RecursionError, RuntimeError) as error:
        raise UserError(f"{path}: a configuration has a value of the wrong kind ({short(str(error))})") from None


@dataclass(frozen=True)
class ReadFolder:
    """The configurations of a diffusers folder; without a second stage its fields are None."""

    name: str
    autoencoder: AutoencoderConfig
    network: ReadUNet | ReadTransformer | None = None
    schedule: dict[str, Any] | None = None
    prediction: str | None = None


def read_folder(path: Path) -> ReadFolder:
    """The configurations of a diffusers folder. Raises UserError for what cannot be imported."""
    return checked(path, lambda: _read_folder(path))


def _read_folder(path: Path) -> ReadFolder:
    if not (path / "model_index.json").is_file():
        config = read_json(inside(path, path / "config.json"))
        return ReadFolder(str(config.get("_class_name")), read_autoencoder(config))
    index = read_json(inside(path, path / "model_index.json"))
    transformer = has_transformer(path)
    config = read_json(inside(path, path / (TRANSFORMER if transformer else "unet") / "config.json"))
    network = read_transformer(config) if transformer else read_unet(config)
    first = read_autoencoder(read_json(inside(path, autoencoder_folder(path, index) / "config.json")))
    schedule, prediction = read_scheduler(read_json(inside(path, path / "scheduler" / "scheduler_config.json")))
    return ReadFolder(str(index.get("_class_name")), first, network, schedule, prediction)
