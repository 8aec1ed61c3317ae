"""The folder of a trained model: where it is, and opening it (YAML + safetensors, no pickle)."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from sfumato.autoencoder.tiny_file import load_distilled
from sfumato.checkpoint import check_finite, load_into, load_tensors, stored_bits
from sfumato.conditioning.pretrained import PretrainedText
from sfumato.conditioning.sources import read_tokenizer
from sfumato.conditioning.table import ConditionerConfig, text_config
from sfumato.config import load_config
from sfumato.errors import UserError
from sfumato.foreign import reading
from sfumato.hub import PREFIX, hub_folder, is_hub, looks_like_name
from sfumato.model import TOKENIZER_FILE, LatentDiffusion, build
from sfumato.model_config import ModelConfig
from sfumato.nn.init import without_weights
from sfumato.shipped import is_shipped, shipped_folder
from sfumato.stored_precision import Bits
from sfumato.versions import CONFIG_FILE, newest_version, read_one_version


def _check_kind(path: Path) -> None:
    """Raises UserError for the folder, or the run, of another kind of model."""
    folders = (path / "model", path)
    if any((folder / "transformer.safetensors").exists() for folder in folders):
        raise UserError(
            f"{str(path)!r} is a transformer over codes, not a diffusion model: sample from it with `sfumato sample`"
        )
    if any((folder / "classifier.safetensors").exists() for folder in folders):
        raise UserError(
            f"{str(path)!r} is a classifier of noisy latents, not a diffusion model: pass it to `sfumato sample` "
            "as --classifier, with the model that it guides"
        )


def find_folder(path: Path | str) -> Path:
    """The model folder at a path or of a name such as `zoo:toy`, or the `model` folder of a run at the path.

    One of the hub (`hub:OWNER/NAME`) is downloaded.

    Raises UserError if there is none.
    """
    if is_shipped(path):
        return shipped_folder(path)
    if is_hub(path):
        return hub_folder(str(path))
    path = Path(path)
    found = newest_version(path, ("autoencoder.safetensors", CONFIG_FILE))
    if found is not None:
        return found
    if not path.exists():
        hub = f", or {PREFIX}{path} for a model of the hub" if looks_like_name(path) else ""
        raise UserError(f"model {str(path)!r} does not exist; give a model folder or the folder of a run{hub}")
    _check_kind(path)
    damaged = next((folder for folder in (path / "model", path) if any(folder.glob("*.safetensors"))), None)
    if damaged is not None:
        lost = CONFIG_FILE if (damaged / "autoencoder.safetensors").exists() else "autoencoder.safetensors"
        raise UserError(f"the model folder {str(damaged)!r} is incomplete: it lacks {lost}")
    if (path / "states").is_dir():
        raise UserError(
            f"the run in {str(path)!r} has not saved a model yet; let it reach its first train.save_every steps"
        )
    if (path / "model_index.json").is_file():
        raise UserError(f"{str(path)!r} is a diffusers folder: convert it with `sfumato import`")
    raise UserError(
        f"{str(path)!r} is neither a model folder nor the folder of a run: it contains no {CONFIG_FILE} with weights"
    )


def load(path: Path | str, device: torch.device | str = "cpu") -> LatentDiffusion:
    """Opens a model folder, or the newest model of a run, also while a training replaces it.

    Raises UserError naming what is missing or does not fit.

    Example:
        >>> model = sfumato.load("zoo:toy")
        >>> model.config.image_size, model.latent_shape
        ((32, 32), (3, 8, 8))
    """
    return read_one_version(lambda: find_folder(path), _load).to(device)


def bits_of(folder: Path) -> Bits | None:
    """The bits in which a model folder stores its weights; None: as they are. Raises UserError for a damaged file."""
    return stored_bits(folder / "autoencoder.safetensors")


def _load(folder: Path) -> LatentDiffusion:
    """The model in a folder, on the CPU."""
    with reading(folder):
        return _opened(folder)


def _opened(folder: Path) -> LatentDiffusion:
    config = with_own_encoders(load_config(str(folder / CONFIG_FILE), [], ModelConfig), folder)
    tokenizer = tokenizer_of(folder, config.diffusion.conditioner if config.diffusion else None)
    with without_weights():
        model = build(config, tokenizer)
    for name, part in model.parts().items():
        load_into(part, load_tensors(folder / f"{name}.safetensors")[0], str(folder / f"{name}.safetensors"))
        _place_buffers(part)
        part.eval().requires_grad_(False)
    _check_encoders(model)
    return replace(model, tiny=load_distilled(folder, model.autoencoder))


def tokenizer_of(folder: Path, conditioner: ConditionerConfig | None) -> str | None:
    """The text of the tokenizer in a model folder. Raises UserError where it is none, or a fitted one is missing."""
    file = folder / TOKENIZER_FILE
    if file.exists():
        return read_tokenizer(file)
    text = text_config(conditioner) if conditioner is not None else None
    if text is not None and text.tokenizer == "fitted":
        raise UserError(f"the model folder {str(folder)!r} is incomplete: it lacks {TOKENIZER_FILE}")
    return None


def _check_encoders(model: LatentDiffusion) -> None:
    """Raises UserError for a pretrained text encoder (not part of the model's files) with non-finite weights."""
    conditioner = None if model.second is None else model.second.conditioner
    for module in () if conditioner is None else conditioner.modules():
        if isinstance(module, PretrainedText):
            check_finite(module.encoder.state_dict(), f"the text encoder {module.config.source}")


def _place_buffers(part: nn.Module) -> None:
    """Moves buffers that are in no file (they only record the device) off the meta device too."""
    for module in part.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                module.register_buffer(name, torch.empty_like(buffer, device="cpu"), persistent=False)


def with_own_encoders(config: ModelConfig, folder: Path) -> ModelConfig:
    """The configuration with full paths of the pretrained encoders inside the model folder."""
    raw = config.model_dump()
    if raw["diffusion"] is None:
        return config
    conditioner = raw["diffusion"]["conditioner"]
    for part in [conditioner, *conditioner.get("parts", {}).values()]:
        if part["kind"] != "pretrained-text":
            continue
        for key in ("source", "tokenizer"):
            if part[key] is not None and (folder / part[key]).is_dir():
                part[key] = str((folder / part[key]).resolve())
    return ModelConfig.model_validate(raw)
