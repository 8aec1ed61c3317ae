"""Original LDM and Stable Diffusion checkpoints -> model folders."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from sfumato.autoencoder.model import Autoencoder
from sfumato.autoencoder.scaling import Scaling
from sfumato.checkpoint import save_tensors, write_text
from sfumato.conditioning.condition import Conditioner, ConditionSpec
from sfumato.conditioning.sources import tokenizer_text
from sfumato.conditioning.table import build_conditioner
from sfumato.config import parse, to_yaml
from sfumato.denoiser.table import build_denoiser
from sfumato.diffusion.schedule import ScheduleConfig
from sfumato.documents import MAX_TEXT, read_text
from sfumato.errors import UserError
from sfumato.interop.conditioners import Mapped, map_conditioner
from sfumato.interop.declared import adopted
from sfumato.interop.infer import EMA, infer_original
from sfumato.interop.known import KNOWN
from sfumato.interop.members import check_finite, copy_tokenizer
from sfumato.interop.original_yaml import Diffusion, Original, first_problem, load_original_yaml
from sfumato.interop.placement import Placement, Weights, place
from sfumato.interop.recognise import no_model_of_ours
from sfumato.interop.source import Source, open_checkpoint
from sfumato.interop.stored_schedule import BUFFERS, configured_or_stored, precision
from sfumato.interop.text_encoders import (
    CLIP_PREFIX,
    DEFAULT_TOKENIZERS,
    FOLDER,
    OPEN_CLIP_PREFIX,
    TOKENIZER_FOLDER,
    clip_pieces,
    take,
    text_config,
    write_text_encoder,
)
from sfumato.model import ModelConfig
from sfumato.nn.init import without_weights
from sfumato.versions import replacing_folder

KEPT_FILE = "original.safetensors"
CONFIG_NAMES = ("config.yaml", "project.yaml")
ZIP_NAMES = ("model", "last")
"""The published archives contain model.ckpt (or last.ckpt) and config.yaml."""


@dataclass(frozen=True)
class Imported:
    """The result of an import: the folder, its configuration, and notes on everything that was assumed or not used."""

    folder: Path
    config: ModelConfig
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """All decisions before the first tensor is read."""

    source: Source
    original: Original
    mapped: Mapped
    config: ModelConfig
    placement: Placement
    scale: float
    yaml: str | None


def import_original(
    path: Path | str | Source,
    folder: Path | str,
    config: Path | str | None = None,
    weights: Weights | None = None,
    tokenizer: str | None = None,
    prediction: str | None = None,
) -> Imported:
    """Converts an original .ckpt or .safetensors file into a model folder that `sfumato.load` opens.

    Args:
        path: the checkpoint, or one opened before; read without being executed, one part at a time.
        folder: where to write; an existing one is replaced once the new one is complete.
        config: the original YAML; by default the one next to the checkpoint, else everything is inferred.
        weights: the averaged ("ema") or the "live" weights of the denoiser; by default averaged if present. The others
            are stored for export.
        tokenizer: of a text model: a tokenizer.json or its folder (for CLIP: the folder or hub name of its tokenizer).
        prediction: "eps" or "v", if neither the YAML nor the file determines it.

    Raises UserError if the file cannot be read, its architecture cannot be determined, or a key is missing or
    misshapen.
    """
    notes: list[str] = []
    source = path if isinstance(path, Source) else open_checkpoint(path)
    plan = _plan(source, config, weights, tokenizer, prediction, notes.append)
    folder = Path(folder)
    with replacing_folder(folder) as fresh:
        _write(plan, fresh, tokenizer, notes.append)
    notes += [f"kept for export, not used: {line}" for line in plan.placement.summary()]
    notes += [f"not a tensor, left out: {name}" for name in plan.source.others]
    return Imported(folder, plan.config, tuple(notes))


# -- plan -------------------------------------------------------------------------------------------------------------


def find_yaml(path: Path) -> Path | None:
    """The original configuration next to a checkpoint, if there is one."""
    candidates = [path.with_suffix(".yaml"), path.with_suffix(".yml")]
    if path.stem in ZIP_NAMES:
        candidates += [path.parent / name for name in CONFIG_NAMES]
    for candidate in candidates:
        if candidate.is_file() and b"target:" in candidate.open("rb").read(MAX_TEXT):
            return candidate
    return None


def read_architecture(
    source: Source, config: Path | str | None, prediction: str | None, report: Callable[[str], None]
) -> Original:
    """The architecture of a checkpoint: from its YAML, or from its keys without one."""
    for note in source.notes:
        report(note)
    what = no_model_of_ours(source.shapes(), source.others)
    if what is not None:
        raise UserError(f"{source.path} is {what}")
    yaml_path = Path(config) if config is not None else find_yaml(source.path)
    step = source.extras.get("global_step")
    if yaml_path is None:
        steps = step if isinstance(step, int) else None
        try:
            return infer_original(source.shapes(), lambda key: source.tensors[key].load(), prediction, steps, report)
        except UserError as error:
            raise UserError(f"{source.path}: {error}") from None
        except ValidationError as error:
            raise UserError(f"{source.path}: its shapes make no known network: {first_problem(error)}") from None
        except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
            raise UserError(f"{source.path}: its shapes make no known network ({error})") from None
    if config is None:
        report(f"configuration: {yaml_path}, found next to the checkpoint")
    original = load_original_yaml(yaml_path)
    diffusion = original.diffusion
    if diffusion is None:
        return original
    if prediction is not None:
        diffusion = replace(diffusion, prediction=prediction)
    declared = None if original.declared is None else original.declared.config.diffusion
    known = None if declared is None else declared.schedule
    return replace(original, diffusion=_with_stored_schedule(source, diffusion, known, report))


def _with_stored_schedule(
    source: Source, diffusion: Diffusion, declared: ScheduleConfig | None, report: Callable[[str], None]
) -> Diffusion:
    """The stored schedule overwrites the configured one, as in the original's loader, with a note."""
    shapes = source.shapes()

    def load(key: str) -> Tensor:
        return source.tensors[key].load()

    if (
        declared is not None
        and declared.kind != "flow"
        and not shapes.keys().isdisjoint(BUFFERS)
        and configured_or_stored(declared, shapes, load, lambda note: None) is None
    ):
        return replace(diffusion, schedule=declared.model_dump())
    configured = TypeAdapter[ScheduleConfig](ScheduleConfig).validate_python(diffusion.schedule)
    found = configured_or_stored(configured, shapes, load, report)
    return diffusion if found is None else replace(diffusion, schedule=found)


def _plan(
    source: Source,
    config: Path | str | None,
    weights: Weights | None,
    tokenizer: str | None,
    prediction: str | None,
    report: Callable[[str], None],
) -> _Plan:
    if source.averaged and weights == "live":
        raise UserError(f"{source.path} has averaged weights only: leave out --weights live")
    original = read_architecture(source, config, prediction, report)
    mapped = Mapped({"kind": "none"})
    scale = 1.0
    if original.diffusion is not None:
        mapped = map_conditioner(original.diffusion, None if tokenizer is None else "tokenizer.json")
        scale = _scale_factor(source, original.diffusion)
    model = adopted(_model_config(source, original, mapped, tokenizer, weights), original.declared, report)
    parts = _shapes_of(model, original, mapped)
    chosen = None if source.averaged else weights
    placement = place(source.shapes(), parts, mapped.prefixes, chosen, str(source.path))
    _check_types(source, placement)
    if mapped.text_model is not None:
        placement = _without_text_encoder(placement, mapped.text_model)
    yaml_path = Path(config) if config is not None else find_yaml(source.path)
    text = None if yaml_path is None else read_text(yaml_path, "config ")
    return _Plan(source, original, mapped, model, placement, scale, text)


def _check_types(source: Source, placement: Placement) -> None:
    """Raises UserError for a weight that is not floating point."""
    for original in (key for keys in placement.parts.values() for key in keys.values()):
        kind = source.tensors[original].dtype
        if not kind.is_floating_point:
            name = str(kind).removeprefix("torch.")
            raise UserError(f"{source.path}: the key {original!r} holds {name} numbers, weights are floating point")


def _scale_factor(source: Source, diffusion: Diffusion) -> float:
    stored = source.tensors.get("scale_factor")
    if stored is None and diffusion.scale_factor is None:
        raise UserError(f"{source.path} lacks the key 'scale_factor' that its configuration (scale_by_std) requires")
    if stored is not None and tuple(stored.shape) not in ((), (1,)):
        raise UserError(f"{source.path}: the key 'scale_factor' has shape {tuple(stored.shape)}, it should be ()")
    scale = float(diffusion.scale_factor or 0) if stored is None else _exact_scale(stored.load().double().reshape(()))
    if not (math.isfinite(scale) and scale > 0):
        raise UserError(f"{source.path}: the scale factor is {scale:g}, it must be positive")
    return scale


def _exact_scale(stored: Tensor) -> float:
    """A scale factor in half precision is replaced by the published one of which it is the rounding, if there is
    one."""
    value = stored.item()
    name, spacing = precision(stored)
    published = {known.scale_factor for known in KNOWN}
    if name != "float32" and value not in published:
        return next((scale for scale in published if abs(scale - value) <= 0.51 * spacing * scale), value)
    return value


def _model_config(
    source: Source, original: Original, mapped: Mapped, tokenizer: str | None, weights: Weights | None
) -> ModelConfig:
    about: dict[str, Any] = {"imported": source.path.name}
    about |= {key: source.extras[key] for key in ("global_step", "epoch") if key in source.extras}
    averaged = f"{EMA}decay" in source.tensors
    raw: dict[str, Any] = {"autoencoder": original.autoencoder.model_dump(), "about": about}
    size = original.resolution
    if original.diffusion is not None:
        diffusion = original.diffusion
        about |= {
            "weights": "ema" if source.averaged or (averaged and weights != "live") else "live",
            "loss": diffusion.loss,
        }
        size = diffusion.latent_size * original.autoencoder.factor
        conditioner = dict(mapped.config)
        if mapped.text_model is not None:
            _place_text_encoder(conditioner, tokenizer or DEFAULT_TOKENIZERS[mapped.text_model], _positions(source))
        raw["diffusion"] = {
            "denoiser": diffusion.unet.model_dump(),
            "conditioner": conditioner,
            "schedule": diffusion.schedule,
            "prediction": diffusion.prediction,
            "condition_dropout": 0.1 if mapped.guidable else 0.0,
        }
    raw["image_size"] = (size, size)
    return parse(raw, ModelConfig, str(source.path))


def _positions(source: Source) -> int:
    """The longest text of the checkpoint's CLIP."""
    keys = (f"{CLIP_PREFIX}text_model.embeddings.position_embedding.weight", f"{OPEN_CLIP_PREFIX}positional_embedding")
    for key in keys:
        if key in source.tensors:
            return source.tensors[key].shape[0]
    raise UserError(f"{source.path} lacks the key {keys[0]!r} that its text encoder needs")


def _place_text_encoder(conditioner: dict[str, Any], tokenizer: str, positions: int) -> None:
    """Sets the encoder's folder, inside the model's, in a configuration or in its part for tokens."""
    text = conditioner["parts"]["tokens"] if conditioner["kind"] == "composite" else conditioner
    text["source"] = FOLDER
    text["tokenizer"] = TOKENIZER_FOLDER if Path(tokenizer).is_dir() else tokenizer
    text["max_tokens"] = min(text["max_tokens"], positions)


def _shapes_of(config: ModelConfig, original: Original, mapped: Mapped) -> dict[str, dict[str, tuple[int, ...]]]:
    """part -> key -> shape of the configuration's networks, built on the meta device."""
    with without_weights():
        modules: dict[str, nn.Module] = {"autoencoder": Autoencoder(config.autoencoder)}
        if config.diffusion is not None and original.diffusion is not None:
            conditioner: Conditioner | None = None
            if mapped.text_model is None:
                conditioner = _build_conditioner(config, mapped)
                spec = ConditionSpec() if conditioner is None else conditioner.spec
            else:
                extra = original.diffusion.in_channels - original.diffusion.latent_channels
                spec = ConditionSpec(token_dim=original.diffusion.token_dim, spatial_channels=extra)
            channels = config.autoencoder.raw_channels
            modules["denoiser"] = build_denoiser(config.diffusion.denoiser, channels, spec)
            if conditioner is not None:
                modules["conditioner"] = conditioner
    return {name: {key: tuple(t.shape) for key, t in module.state_dict().items()} for name, module in modules.items()}


def _build_conditioner(config: ModelConfig, mapped: Mapped) -> Conditioner | None:
    """The conditioner without its tokenizer, which has no weights; a fitted one may have fewer entries than its
    limit."""
    assert config.diffusion is not None
    conditioner = config.diffusion.conditioner
    if conditioner.kind == "text":
        conditioner = conditioner.model_copy(
            update={"tokenizer": "none", "vocabulary": mapped.config.get("vocabulary", conditioner.vocabulary)}
        )
    return build_conditioner(conditioner)


def _without_text_encoder(placement: Placement, kind: str) -> Placement:
    """The placement without the text encoder's keys, which are written to their own folder."""
    used = {original for original, _ in clip_pieces(placement.kept, kind).values()}
    return Placement(placement.parts, {key: why for key, why in placement.kept.items() if key not in used})


# -- write ------------------------------------------------------------------------------------------------------------


def _write(plan: _Plan, folder: Path, tokenizer: str | None, report: Callable[[str], None]) -> None:
    manifest: dict[str, Any] = {"keys": _manifest_keys(plan), "extras": plan.source.extras, "digests": {}}
    manifest |= {"scale": plan.scale, "config": config_text(plan.config)}
    for part, keys in plan.placement.parts.items():
        tensors = {ours: _floats(plan.source.tensors[original].load()) for ours, original in keys.items()}
        check_finite(((keys[ours], tensor) for ours, tensor in tensors.items()), plan.source.path)
        manifest["digests"][part] = digest(tensors)
        save_tensors(folder / f"{part}.safetensors", tensors)
        del tensors
    if plan.config.diffusion is not None and plan.config.diffusion.conditioner.kind != "none":
        empty = folder / "conditioner.safetensors"
        if not empty.exists():
            save_tensors(empty, {})
    scaling = Scaling.from_factor(plan.config.autoencoder.raw_channels, plan.scale)
    save_tensors(folder / "scaling.safetensors", scaling.state_dict())
    if plan.mapped.text_model is not None:
        manifest["text_encoder"] = plan.mapped.text_model
        _write_text_encoder(plan, folder / FOLDER)
        if tokenizer is not None and Path(tokenizer).is_dir():
            copy_tokenizer(Path(tokenizer), folder / TOKENIZER_FOLDER, report)
    if tokenizer is not None and plan.mapped.config["kind"] == "text":
        write_text(folder / "tokenizer.json", tokenizer_text(tokenizer))
    elif plan.original.declared is not None and plan.original.declared.tokenizer is not None:
        write_text(folder / "tokenizer.json", plan.original.declared.tokenizer)
    kept, copies = _unique_tensors(plan)
    manifest["copies"] = copies
    manifest["yaml"] = plan.yaml
    save_tensors(folder / KEPT_FILE, kept, manifest)
    write_text(folder / "config.yaml", to_yaml(plan.config))


def _manifest_keys(plan: _Plan) -> list[list[str | None]]:
    """[original key, element type, part or None, our key or None] in the file's order."""
    where = {original: (part, ours) for part, keys in plan.placement.parts.items() for ours, original in keys.items()}
    rows: list[list[str | None]] = []
    for key, tensor in plan.source.tensors.items():
        part, ours = where.get(key, (None, None))
        rows.append([key, str(tensor.dtype).removeprefix("torch."), part, ours])
    return rows


def _floats(tensor: Tensor) -> Tensor:
    """Half precision and less is widened, which is exact and supported everywhere; export narrows it again."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor


def config_text(config: ModelConfig) -> str:
    """The part of a configuration that determines an export: all but the notes in `about`."""
    return to_yaml(config.model_copy(update={"about": {}}))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names and values, to detect changes of a part since the import."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _unique_tensors(plan: _Plan) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors to store, and those that are copies of another: copy -> key."""
    kept, copies = {}, {}
    for key, reason in plan.placement.kept.items():
        tensor = plan.source.tensors[key].load()
        if reason == "copy":
            twin = key.replace("cond_stage_model.", "first_stage_model.", 1)
            if twin in plan.source.tensors and torch.equal(plan.source.tensors[twin].load(), tensor):
                copies[key] = twin
                continue
        kept[key] = tensor
    return kept, copies


def _write_text_encoder(plan: _Plan, folder: Path) -> None:
    kind = plan.mapped.text_model
    assert kind is not None
    pieces = clip_pieces(plan.source.tensors, kind)
    tensors = {name: take(pieces, name, plan.source.tensors[key].load()) for name, (key, _) in pieces.items()}
    check_finite(((pieces[name][0], tensor) for name, tensor in tensors.items()), plan.source.path)
    config = text_config({name: tuple(tensor.shape) for name, tensor in tensors.items()}, kind)
    write_text_encoder(folder, tensors, config)
