"""diffusers folders -> model folders: a whole pipeline, or an autoencoder alone. Its code is never imported."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.autoencoder.model import Autoencoder
from sfumato.autoencoder.scaling import Scaling
from sfumato.checkpoint import load_tensors, save_tensors, write_text
from sfumato.conditioning.condition import ConditionSpec
from sfumato.config import parse, to_yaml
from sfumato.counts import how_many
from sfumato.denoiser.unet import UNet
from sfumato.documents import read_text
from sfumato.errors import UserError
from sfumato.foreign import short
from sfumato.interop.declared import adopted, read_declared
from sfumato.interop.diffusers_component import (
    WEIGHTS,
    Component,
    Report,
    convert,
    open_component,
    read_json,
    shapes_of,
)
from sfumato.interop.diffusers_config import ReadUNet, read_autoencoder, read_scheduler, read_unet, sides
from sfumato.interop.diffusers_folder import (
    AUTOENCODER_FOLDERS,
    TRANSFORMER,
    autoencoder_folder,
    checked,
    has_transformer,
)
from sfumato.interop.diffusers_keys import autoencoder_entries, unet_entries
from sfumato.interop.diffusers_transformer import (
    TABLE,
    all_names,
    import_transformer,
    read_names,
    read_transformer,
    without_filling,
)
from sfumato.interop.members import (
    TOKENIZER_FILES,
    copy_text_encoder,
    copy_tokenizer,
    find_weights,
    inside,
    left_out,
)
from sfumato.interop.original import Imported, config_text, digest
from sfumato.interop.recognise import unusual_input
from sfumato.interop.text_encoders import FOLDER
from sfumato.model import ModelConfig
from sfumato.nn.init import without_weights
from sfumato.plain_json import to_json
from sfumato.versions import replacing_folder

STORE = "diffusers"
"""Subfolder with the imported configurations, for export."""
CONDITIONER_FOLDER = "conditioner"
"""Subfolder of an exported pipeline with sfumato's conditioner, where diffusers has no class for it."""
VARIANCE = "variance.safetensors"
"""File in the store with the rows of a DiT's last layer that predict a variance, for export."""


def import_autoencoder(component: Component) -> Autoencoder:
    """AutoencoderKL or VQModel with its weights."""
    config = read_autoencoder(component.config)
    with without_weights():
        module = Autoencoder(config)
    shapes = shapes_of(module)
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
    with without_weights():
        module = UNet(read.config, read.out_channels, ConditionSpec(width, read.token_dim, extra))
    table = None
    if read.classes is not None:
        key = "class_embedding.weight"
        if key not in component.tensors:
            raise UserError(f"{component.path} lacks the key {key!r} that its configuration requires")
        table = component.tensors[key].load().float()
        component.used.add(key)
    shapes = shapes_of(module)
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
        config = checked(path, lambda: _import(path, fresh, notes.append))
        taken = {path / name for name in _files_read(path)}
        unused = left_out(path, taken)
        if unused is not None:
            notes.append(unused)
        write_text(fresh / "config.yaml", to_yaml(config))
    return Imported(folder, config, tuple(notes))


def _files_read(path: Path) -> list[Path]:
    """The files that an import reads, if they exist."""
    found = [Path("model_index.json"), Path("config.json"), Path("scheduler/scheduler_config.json")]
    for name in ("", *AUTOENCODER_FOLDERS, "unet", TRANSFORMER, FOLDER):
        folder = path / name
        if folder.is_dir():
            stems = ("model", "pytorch_model") if name == FOLDER else (WEIGHTS,)
            weights = find_weights(path, folder, stems)
            files = [] if weights is None else [*weights.files, *([weights.index] if weights.index else [])]
            found += [Path(name) / "config.json", *(file.relative_to(path) for file in files)]
    found += [Path("tokenizer") / name for name in TOKENIZER_FILES]
    kept = ("config.json", "conditioner.safetensors", "tokenizer.json")
    return found + [Path(CONDITIONER_FOLDER) / name for name in kept]


def _import(path: Path, out: Path, report: Report) -> ModelConfig:
    index = read_json(inside(path, path / "model_index.json")) if (path / "model_index.json").is_file() else None
    if index is not None and has_transformer(path):  # others are named by it, not by their autoencoder
        read_transformer(read_json(inside(path, path / TRANSFORMER / "config.json")))
    place = path if index is None else autoencoder_folder(path, index)
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
        found = _second_stage(_Pipeline(path, index, autoencoder, out, manifest, report))
        raw |= {"diffusion": found.diffusion, "classes": found.classes}
        if found.latent is not None:
            raw["image_size"] = tuple(side * autoencoder.factor for side in found.latent)
        _keep_json(path / found.folder / "config.json", out / STORE / f"{found.folder}.json")
        _keep_json(path / "scheduler" / "scheduler_config.json", out / STORE / "scheduler.json")
        _keep_json(path / "model_index.json", out / STORE / "model_index.json")
    config = adopted(parse(raw, ModelConfig, str(path)), read_declared(path), report)
    manifest |= {"config": config_text(config), "scaling": digest(scaling.state_dict())}
    write_text(out / STORE / "manifest.json", to_json(manifest, indent=1))
    return config


def _keep_json(source: Path, target: Path) -> None:
    write_text(target, read_text(source))


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


@dataclass(frozen=True)
class _Second:
    """A second stage: its configuration as plain data, the folder of its network, (h, w) of its training latents if
    known, and the names of its classes."""

    diffusion: dict[str, Any]
    folder: str
    latent: tuple[int, int] | None
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _Pipeline:
    """A pipeline on its way into the model folder `out`: where it is, its model_index.json, its first stage, what is
    kept for an export, and the reader of notes."""

    path: Path
    index: Mapping[str, Any]
    autoencoder: Autoencoder
    out: Path
    manifest: dict[str, Any]
    report: Report

    def save(self, component: Component, **parts: Mapping[str, Tensor]) -> None:
        """Writes the tensors of parts of the second stage, whose network is the component."""
        self.manifest["dtypes"]["denoiser"] = component.dtype
        for name, tensors in parts.items():
            save_tensors(self.out / f"{name}.safetensors", tensors)
            self.manifest["digests"][name] = digest(tensors)

    def check_channels(self, network: str, channels: int) -> None:
        """Raises UserError for a network of another number of channels than the latent's."""
        if channels != self.autoencoder.latent_channels:
            raise UserError(
                f"{self.path}: the {network} outputs {channels} channels, the latent has "
                f"{self.autoencoder.latent_channels}"
            )


def _second_stage(pipeline: _Pipeline) -> _Second:
    path = pipeline.path
    schedule, prediction = read_scheduler(read_json(inside(path, path / "scheduler" / "scheduler_config.json")))
    made = _transformer(pipeline) if has_transformer(path) else _unet(pipeline)
    return replace(made, diffusion={**made.diffusion, "schedule": schedule, "prediction": prediction})


def _unet(pipeline: _Pipeline) -> _Second:
    path, out = pipeline.path, pipeline.out
    component = open_component(path / "unet", path, pipeline.report)
    unet, table = import_unet(component)
    read = read_unet(component.config)
    pipeline.check_channels("U-Net", unet.latent_channels)
    own = {} if table is None else {"embedding.weight": table}
    stored = path / CONDITIONER_FOLDER
    if (stored / "config.json").is_file():
        conditioner = read_json(inside(path, stored / "config.json"))
        own, _ = load_tensors(inside(path, stored / "conditioner.safetensors"))
        if (stored / "tokenizer.json").is_file():
            shutil.copyfile(inside(path, stored / "tokenizer.json"), out / "tokenizer.json")
    else:
        conditioner = _conditioner(path, pipeline.index, read, out, pipeline.report)
    pipeline.save(
        component, denoiser=unet.state_dict(), **({} if conditioner["kind"] == "none" else {"conditioner": own})
    )
    stage = {
        "denoiser": read.config.model_dump(),
        "conditioner": conditioner,
        "condition_dropout": 0.1 if read.token_dim is not None else 0.0,
    }
    return _Second(stage, "unet", read.size)


def _transformer(pipeline: _Pipeline) -> _Second:
    """A DiTPipeline's: the table of classes without the rows that fill it up, and the names of the classes."""
    report = pipeline.report
    component = open_component(pipeline.path / TRANSFORMER, pipeline.path, report)
    found = import_transformer(component)
    read = found.read
    pipeline.check_channels("transformer", read.channels)
    names = read_names(pipeline.index, read.classes)
    table = without_filling(found.table, least=1 + max(names, default=0))
    classes = len(table) - 1
    if classes < read.classes:
        report(f"classes {classes} to {read.classes - 1} are copies of the unconditional one and left out")
    report(f"{how_many(classes, 'class', 'classes')}, and one of unconditional samples")
    pipeline.save(component, denoiser=found.network.state_dict(), conditioner={TABLE: table})
    if found.variance:
        save_tensors(pipeline.out / STORE / VARIANCE, found.variance)
        report(
            "the second half of the outputs, a learned variance, is not used: samplers need the mean alone; it is kept "
            "for an export"
        )
    report(
        "time is embedded at diffusers' frequencies (denoiser.time_frequencies: closed); DiT's published weights were "
        "trained with open ones"
    )
    width = read.config.width
    stage = {
        "denoiser": read.config.model_dump(),
        "conditioner": {"kind": "class", "classes": classes, "dim": width, "output": "vector"},
        "condition_dropout": 0.1,
    }
    return _Second(stage, TRANSFORMER, (read.side, read.side), all_names(names, classes))


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
