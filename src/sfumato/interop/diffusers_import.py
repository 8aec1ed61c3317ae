"""diffusers folders -> model folders: a whole pipeline, or an autoencoder alone. Its code is never imported."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from sfumato.autoencoder.model import Autoencoder
from sfumato.autoencoder.scaling import Scaling
from sfumato.checkpoint import load_tensors, save_tensors, write_text
from sfumato.conditioning.condition import ConditionSpec
from sfumato.config import parse, to_yaml
from sfumato.denoiser.unet import UNet
from sfumato.documents import read_json_object, read_text
from sfumato.errors import UserError
from sfumato.foreign import short
from sfumato.interop.declared import adopted, read_declared
from sfumato.interop.diffusers_config import ReadUNet, read_autoencoder, read_scheduler, read_unet, sides
from sfumato.interop.diffusers_keys import OLD_ATTENTION, Entry, autoencoder_entries, unet_entries
from sfumato.interop.members import (
    TOKENIZER_FILES,
    check_finite,
    copy_text_encoder,
    copy_tokenizer,
    find_weights,
    inside,
    left_out,
    variant_note,
)
from sfumato.interop.original import Imported, config_text, digest
from sfumato.interop.original_yaml import first_problem
from sfumato.interop.recognise import no_model_of_ours, unusual_input
from sfumato.interop.source import open_checkpoint
from sfumato.interop.text_encoders import FOLDER
from sfumato.model import ModelConfig
from sfumato.plain_json import to_json
from sfumato.versions import replacing_folder

Shape = tuple[int, ...]
Report = Callable[[str], None]
STORE = "diffusers"
"""Subfolder with the imported configurations, for export."""
WEIGHTS = "diffusion_pytorch_model"
CONDITIONER_FOLDER = "conditioner"
"""Subfolder of an exported pipeline with sfumato's conditioner, where diffusers has no class for it."""
AUTOENCODER_FOLDERS = ("vae", "vqvae", "movq")


@dataclass
class Component:
    """One model of a diffusers folder: its configuration, and its tensors read on demand."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Any]
    dtype: str = "float32"
    used: set[str] = field(default_factory=set)


def is_diffusers_folder(path: Path) -> bool:
    """A pipeline (model_index.json), or one of its models (config.json with a class name).

    Raises UserError for a config.json that is a link out of the folder.
    """
    if (path / "model_index.json").is_file():
        return True
    config = path / "config.json"
    return config.is_file() and "_class_name" in read_json(inside(path, config))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises UserError if the file is missing or does not contain one."""
    if not path.exists():
        raise UserError(f"{path} does not exist; is the folder complete?")
    return read_json_object(path)


def open_component(folder: Path, root: Path | None = None, report: Report = lambda line: None) -> Component:
    """config.json and its weights: safetensors or a pickle, whole or in shards, in the preferred variant.

    root: the folder that links must not leave; by default the folder itself.
    """
    root = root or folder
    config = read_json(inside(root, folder / "config.json"))
    weights = find_weights(root, folder, (WEIGHTS,))
    if weights is None:
        raise UserError(f"{folder} has no {WEIGHTS}.safetensors or .bin; is the folder complete?")
    line = variant_note(weights, folder.name)
    if line is not None:
        report(line)
    tensors: dict[str, Any] = {}
    for path in weights.files:
        tensors |= open_checkpoint(path).tensors
    renamed = {modern(key): tensor for key, tensor in tensors.items()}
    what = no_model_of_ours({key: tensor.shape for key, tensor in renamed.items()})
    if what is not None:
        raise UserError(f"{folder} is {what}")
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in renamed.values()}
    return Component(folder, config, renamed, kinds.pop() if len(kinds) == 1 else "float32")


def modern(key: str) -> str:
    """A key renamed as in later releases."""
    for old, new in OLD_ATTENTION.items():
        if old in key:
            return key.replace(old, new)
    return key


def convert(component: Component, entries: Mapping[str, Entry], shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """sfumato's tensors from a component's; raises UserError for a missing, misshapen or left-over key."""
    out = {}
    for ours, shape in shapes.items():
        entry = entries[ours]
        for key in entry.theirs:
            if key not in component.tensors:
                raise UserError(f"{component.path} lacks the key {key!r} that its configuration requires")
        parts = {key: component.tensors[key].load() for key in entry.theirs}
        elements = sum(part.numel() for part in parts.values())
        same_axes = len(parts) > 1 or entry.layout != "same" or next(iter(parts.values())).shape == shape
        if elements != torch.Size(shape).numel() or not same_axes:
            found = tuple(next(iter(parts.values())).shape)
            raise UserError(
                f"{component.path}: the key {entry.theirs[0]!r} has shape {found}, its configuration requires {shape}"
            )
        check_finite(parts.items(), component.path)
        component.used |= set(entry.theirs)
        out[ours] = entry.to_ours(parts, shape).float().contiguous()
    left = sorted(set(component.tensors) - component.used)
    if left:
        raise UserError(f"{component.path} has {len(left)} keys of no known use, the first is {left[0]!r}")
    return out


def _shapes(module: nn.Module) -> dict[str, Shape]:
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def import_autoencoder(component: Component) -> Autoencoder:
    """AutoencoderKL or VQModel with its weights."""
    config = read_autoencoder(component.config)
    with torch.device("meta"):
        module = Autoencoder(config)
    shapes = _shapes(module)
    tensors = convert(component, autoencoder_entries(shapes, len(config.channel_multipliers)), shapes)
    module.load_state_dict(tensors, assign=True)
    return module


def import_unet(component: Component) -> tuple[UNet, Tensor | None]:
    """UNet2DModel or UNet2DConditionModel with its weights, and its table of classes, if it has one."""
    read = read_unet(component.config)
    extra = read.in_channels - read.out_channels
    if extra < 0:
        raise UserError(
            f"{component.path}: {read.in_channels} channels in and {read.out_channels} out is not supported"
        )
    width = 4 * read.config.channels if read.classes is not None else None
    with torch.device("meta"):
        module = UNet(read.config, read.out_channels, ConditionSpec(width, read.token_dim, extra))
    table = None
    if read.classes is not None:
        key = "class_embedding.weight"
        if key not in component.tensors:
            raise UserError(f"{component.path} lacks the key {key!r} that its configuration requires")
        table = component.tensors[key].load().float()
        component.used.add(key)
    shapes = _shapes(module)
    entries = unet_entries(shapes, read.config, read.token_dim is not None)
    module.load_state_dict(convert(component, entries, shapes), assign=True)
    return module, table


# -- folders ----------------------------------------------------------------------------------------------------------


def import_diffusers(path: Path | str, folder: Path | str) -> Imported:
    """Converts a diffusers folder (a pipeline, an AutoencoderKL or a VQModel) into a model folder.

    Raises UserError for a component or option without counterpart, and for missing, misshapen or left-over keys.
    """
    path, folder = Path(path), Path(folder)
    notes: list[str] = []
    with replacing_folder(folder) as fresh:
        config = _read(path, fresh, notes.append)
        taken = {path / name for name in _files_read(path)}
        unused = left_out(path, taken)
        if unused is not None:
            notes.append(unused)
        write_text(fresh / "config.yaml", to_yaml(config))
    return Imported(folder, config, tuple(notes))


def _files_read(path: Path) -> list[Path]:
    """The files that an import reads, if they exist."""
    found = [Path("model_index.json"), Path("config.json"), Path("scheduler/scheduler_config.json")]
    for name in ("", *AUTOENCODER_FOLDERS, "unet", FOLDER):
        folder = path / name
        if folder.is_dir():
            stems = ("model", "pytorch_model") if name == FOLDER else (WEIGHTS,)
            weights = find_weights(path, folder, stems)
            files = [] if weights is None else [*weights.files, *([weights.index] if weights.index else [])]
            found += [Path(name) / "config.json", *(file.relative_to(path) for file in files)]
    found += [Path("tokenizer") / name for name in TOKENIZER_FILES]
    kept = ("config.json", "conditioner.safetensors", "tokenizer.json")
    return found + [Path(CONDITIONER_FOLDER) / name for name in kept]


def _read(path: Path, out: Path, report: Report) -> ModelConfig:
    try:
        return _import(path, out, report)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{path}: a configuration lacks {short(error.args[0])}; is the folder complete?") from None
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RecursionError, RuntimeError) as error:
        raise UserError(f"{path}: a configuration has a value of the wrong kind ({short(str(error))})") from None


def _import(path: Path, out: Path, report: Report) -> ModelConfig:
    index = read_json(inside(path, path / "model_index.json")) if (path / "model_index.json").is_file() else None
    place = path if index is None else _autoencoder_folder(path, index)
    component = open_component(place, path, report)
    autoencoder = import_autoencoder(component)
    manifest: dict[str, Any] = {"dtypes": {"autoencoder": component.dtype}, "digests": {}}
    save_tensors(out / "autoencoder.safetensors", autoencoder.state_dict())
    manifest["digests"]["autoencoder"] = digest(autoencoder.state_dict())
    manifest["autoencoder"] = place.name if index is not None else ""
    _keep_json(place / "config.json", out / STORE / "autoencoder.json")
    scaling = _scaling(component.config, autoencoder.latent_channels)
    save_tensors(out / "scaling.safetensors", scaling.state_dict())
    size = sides(component.config.get("sample_size") or 256, "sample_size")
    raw: dict[str, Any] = {"autoencoder": autoencoder.config.model_dump(), "image_size": size}
    raw["about"] = {"imported": path.name}
    if index is not None:
        unet = open_component(path / "unet", path, report)
        raw["diffusion"], latent = _second_stage(path, index, unet, autoencoder, out, manifest, report)
        if latent is not None:
            raw["image_size"] = tuple(side * autoencoder.factor for side in latent)
        _keep_json(path / "unet" / "config.json", out / STORE / "unet.json")
        _keep_json(path / "scheduler" / "scheduler_config.json", out / STORE / "scheduler.json")
        _keep_json(path / "model_index.json", out / STORE / "model_index.json")
    config = adopted(parse(raw, ModelConfig, str(path)), read_declared(path), report)
    manifest |= {"config": config_text(config), "scaling": digest(scaling.state_dict())}
    write_text(out / STORE / "manifest.json", to_json(manifest, indent=1))
    return config


def _keep_json(source: Path, target: Path) -> None:
    write_text(target, read_text(source))


def _autoencoder_folder(path: Path, index: Mapping[str, Any]) -> Path:
    for name in AUTOENCODER_FOLDERS:
        if (path / name / "config.json").is_file():
            return path / name
    raise UserError(f"{path} is a pipeline ({index.get('_class_name')}) without autoencoder (vae or vqvae)")


def _scaling(config: Mapping[str, Any], channels: int) -> Scaling:
    """diffusers: model = (raw - shift_factor) * scaling_factor, or per channel."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    shift, scale = config.get("shift_factor") or 0.0, config.get("scaling_factor", 0.18215 if mean is None else 1.0)
    if mean is not None and std is not None:
        shifts, scales = torch.tensor(mean, dtype=torch.float32), float(scale) / torch.tensor(std, dtype=torch.float32)
    else:
        shifts, scales = torch.full((channels,), float(shift)), torch.full((channels,), float(scale))
    if shifts.shape != (channels,) or scales.shape != (channels,):
        raise UserError(
            f"latents_mean and latents_std must have {channels} numbers each, one per channel of the latent"
        )
    if not bool(shifts.isfinite().all()) or not bool(scales.isfinite().all()) or not bool((scales > 0).all()):
        raise UserError(
            f"the scaling of the latent (shift_factor {short(shift)}, scaling_factor {short(scale)}, latents_mean, "
            "latents_std) must be finite, and factors positive"
        )
    return Scaling(shifts, scales)


def _second_stage(
    path: Path,
    index: Mapping[str, Any],
    component: Component,
    autoencoder: Autoencoder,
    out: Path,
    manifest: dict[str, Any],
    report: Report,
) -> tuple[dict[str, Any], tuple[int, int] | None]:
    unet, table = import_unet(component)
    read = read_unet(component.config)
    if unet.latent_channels != autoencoder.latent_channels:
        raise UserError(
            f"{path}: the U-Net outputs {unet.latent_channels} channels, the latent has {autoencoder.latent_channels}"
        )
    save_tensors(out / "denoiser.safetensors", unet.state_dict())
    manifest["dtypes"]["denoiser"] = component.dtype
    manifest["digests"]["denoiser"] = digest(unet.state_dict())
    schedule, prediction = read_scheduler(read_json(inside(path, path / "scheduler" / "scheduler_config.json")))
    own = {} if table is None else {"embedding.weight": table}
    stored = path / CONDITIONER_FOLDER
    if (stored / "config.json").is_file():
        conditioner = read_json(inside(path, stored / "config.json"))
        own, _ = load_tensors(inside(path, stored / "conditioner.safetensors"))
        if (stored / "tokenizer.json").is_file():
            shutil.copyfile(inside(path, stored / "tokenizer.json"), out / "tokenizer.json")
    else:
        conditioner = _conditioner(path, index, read, out, report)
    if conditioner["kind"] != "none":
        save_tensors(out / "conditioner.safetensors", own)
        manifest["digests"]["conditioner"] = digest(own)
    stage = {
        "denoiser": read.config.model_dump(),
        "conditioner": conditioner,
        "schedule": schedule,
        "prediction": prediction,
        "condition_dropout": 0.1 if read.token_dim is not None else 0.0,
    }
    return stage, read.size


def _conditioner(path: Path, index: Mapping[str, Any], read: ReadUNet, out: Path, report: Report) -> dict[str, Any]:
    """The conditioner for a pipeline's U-Net; a text encoder is copied into the model folder."""
    extra = read.in_channels - read.out_channels
    unusual = unusual_input(read.in_channels, read.out_channels, read.token_dim is not None)
    if unusual is not None:
        raise UserError(f"{path} is {unusual}, which no command here supports")
    parts: dict[str, dict[str, Any]] = {}
    if extra == read.out_channels + 1:
        parts |= {"mask": _image("mask", 1), "masked_image": _image("masked_latent", extra - 1)}
    elif extra:
        parts["concat"] = _image("low_resolution", extra)
    if read.classes is not None:
        width = 4 * read.config.channels
        parts["classes"] = {"kind": "class", "classes": read.classes, "dim": width, "null": "none", "output": "vector"}
    if read.token_dim is not None:
        parts["tokens"] = _tokens(path, index, read.token_dim, out, report)
    if not parts:
        return {"kind": "none"}
    if len(parts) == 1:
        return next(iter(parts.values()))
    if read.classes is not None:
        raise UserError(f"{path}: a U-Net with its own table of classes and other conditions is not supported")
    return {"kind": "composite", "parts": parts}


def _image(name: str, channels: int) -> dict[str, Any]:
    return {"kind": "image", "field": name, "channels": channels}


def _tokens(path: Path, index: Mapping[str, Any], width: int, out: Path, report: Report) -> dict[str, Any]:
    if not (path / "text_encoder" / "config.json").is_file():
        report(f"there is no text encoder: the model requires ready-made tokens of width {width} (field embeddings)")
        return {"kind": "embeddings", "dim": width}
    encoder = read_json(inside(path, path / "text_encoder" / "config.json"))
    if (encoder.get("architectures") or [""])[0] not in ("CLIPTextModel", "CLIPTextModelWithProjection"):
        raise UserError(
            f"{path}: the text encoder {encoder.get('architectures')} is not supported; known is CLIPTextModel"
        )
    copy_text_encoder(path, path / "text_encoder", out / FOLDER, report)
    config: dict[str, Any] = {"kind": "pretrained-text", "source": FOLDER, "mask_padding": False}
    if (path / "tokenizer").is_dir():
        copy_tokenizer(path / "tokenizer", out / "tokenizer", report, path)
        config["tokenizer"] = "tokenizer"
        settings = path / "tokenizer" / "tokenizer_config.json"
        length = read_json(inside(path, settings)).get("model_max_length") if settings.is_file() else None
        positions = int(encoder.get("max_position_embeddings", 77))
        config["max_tokens"] = length if isinstance(length, int) and length <= positions else positions
    return config
