"""Model folders -> original checkpoints: the originally imported file, or a new one for a model trained with
sfumato."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from sfumato.checkpoint import load_tensors, replacing, write_text
from sfumato.config import load_config
from sfumato.diffusion.schedule import DiscreteSchedule, build_schedule
from sfumato.errors import UserError
from sfumato.interop.buffers import schedule_buffers
from sfumato.interop.declared import SECTION, dump_declared, notes_aside
from sfumato.interop.expressible import refuse_for_original
from sfumato.interop.infer import CONDITIONER, FIRST_STAGE, UNET
from sfumato.interop.modelspec import modelspec, save_described
from sfumato.interop.original import KEPT_FILE, config_text, digest
from sfumato.interop.original_dump import TextModel, dump_original
from sfumato.interop.placement import ema_key
from sfumato.interop.text_encoders import FOLDER, original_tensors
from sfumato.model import CONFIG_FILE, TOKENIZER_FILE, ModelConfig
from sfumato.model_folder import find_folder

Report = Callable[[str], None]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Exported:
    """The checkpoint, its YAML, and notes on differences."""

    checkpoint: Path
    config: Path
    notes: tuple[str, ...]


def export_original(model: Path | str, out: Path | str) -> Exported:
    """Writes a model folder as an original checkpoint with its YAML.

    Args:
        model: a model folder, or the folder of a run.
        out: a .ckpt or .safetensors file, or a folder (for model.ckpt and config.yaml).

    The export of a model that was imported and not changed since has every tensor of the imported file, bitwise. That
    of a model trained further has its new weights, as both the live and the averaged ones.

    Raises UserError for anything that the original cannot express.
    """
    folder, out = find_folder(model), Path(out)
    notes: list[str] = []
    config = load_config(str(folder / CONFIG_FILE), [], ModelConfig)
    kept = folder / KEPT_FILE
    if kept.exists():
        state, extras, text = _as_imported(folder, config, notes.append)
    else:
        refuse_for_original(config, folder)
        state, extras, text = _made_here(folder, config, notes.append)
    single = out.suffix in (".ckpt", ".safetensors", ".pt")
    checkpoint = out if single else out / "model.ckpt"
    yaml_path = checkpoint.with_suffix(".yaml") if single else out / "config.yaml"
    if checkpoint.suffix == ".safetensors":
        save_described(checkpoint, state, modelspec(folder, config))
    else:
        with replacing(checkpoint) as temporary:
            torch.save({**extras, "state_dict": state}, temporary)
    write_text(yaml_path, text)
    return Exported(checkpoint, yaml_path, tuple(notes))


# -- as imported ------------------------------------------------------------------------------------------------------


def _as_imported(folder: Path, config: ModelConfig, report: Report) -> tuple[Tensors, dict[str, Any], str]:
    kept, manifest = load_tensors(folder / KEPT_FILE)
    if manifest["config"] != config_text(config):
        raise UserError(
            f"{CONFIG_FILE} was edited since the import, so {KEPT_FILE} no longer matches it: "
            f"restore it, or remove {KEPT_FILE} to export the folder's present content"
        )
    parts = {part: load_tensors(folder / f"{part}.safetensors")[0] for part in manifest["digests"]}
    changed = {part for part, tensors in parts.items() if digest(tensors) != manifest["digests"][part]}
    if changed:
        report(
            f"{' and '.join(sorted(changed))} changed since the import: live and averaged weights are both the new ones"
        )
    text_encoder = manifest.get("text_encoder")
    encoder = original_tensors(folder / FOLDER, text_encoder) if text_encoder else {}
    fresh: Tensors = {}
    for _, _, part, ours in manifest["keys"]:
        if part in changed and part is not None:
            fresh |= _both(part, ours, parts[part][ours])
    state: Tensors = {}
    for key, kind, part, ours in manifest["keys"]:
        dtype = getattr(torch, kind)
        if part is not None:
            state[key] = narrowed(parts[part][ours], dtype)
        elif key in fresh:
            state[key] = narrowed(fresh[key], dtype)
        elif key in manifest["copies"]:
            state[key] = state.get(manifest["copies"][key], kept.get(manifest["copies"][key], torch.empty(0)))
        elif key in kept:
            state[key] = kept[key]
        else:
            state[key] = narrowed(encoder[key], dtype)
    text = manifest.get("yaml")
    if not text:
        raw = dump_original(config, manifest["scale"], report, _text_model(folder))
        text = yaml.safe_dump(raw, sort_keys=False)
    return state, manifest["extras"], text


def narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in its imported type, unless that would lose digits, as after further training."""
    half = tensor.to(dtype)
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def _both(part: str, ours: str, tensor: Tensor) -> Tensors:
    """A denoiser's tensor under its live and its averaged name."""
    if part != "denoiser":
        return {}
    return {UNET + ours: tensor, ema_key(UNET.removeprefix("model.") + ours): tensor}


# -- made here --------------------------------------------------------------------------------------------------------


def single_scale(folder: Path, config: ModelConfig) -> tuple[float, Tensor, Tensor]:
    """(factor, shift, scale): the factor if the scaling is one number for all channels, else 1 and the values to fold.

    Where there is nothing to fold, shift is 0 and scale 1. Raises UserError for a codebook's scaling per channel.
    """
    tensors, _ = load_tensors(folder / "scaling.safetensors")
    shift, scale = tensors["shift"], tensors["scale"]
    if bool((shift == 0).all()) and bool((scale == scale[0]).all()):
        return float(scale[0]), torch.zeros_like(shift), torch.ones_like(scale)
    if config.autoencoder.bottleneck.kind == "vq":
        raise UserError(
            "a scaling per channel cannot be exported with a codebook, whose search it would change: "
            "train the diffusion model with one factor for all channels"
        )
    return 1.0, shift, scale


def is_identity(shift: Tensor, scale: Tensor) -> bool:
    """Whether a scaling changes nothing."""
    return bool((shift == 0).all()) and bool((scale == 1).all())


def fold_scaling(autoencoder: Tensors, shift: Tensor, scale: Tensor) -> Tensors:
    """A KL autoencoder whose raw latent is the model latent: shift and scale moved into its 1×1 convolutions.

    Exact except for rounding, and for log variances near their clamps. Unchanged with shift 0 and scale 1.
    """
    if is_identity(shift, scale):
        return autoencoder
    tensors = dict(autoencoder)
    weight, bias = tensors["quant_conv.weight"].double(), tensors["quant_conv.bias"].double()
    wide_shift, wide_scale = shift.double(), scale.double()
    mean_weight, log_weight = weight.chunk(2)
    mean_bias, log_bias = bias.chunk(2)
    mean_bias = (mean_bias - wide_shift) * wide_scale
    mean_weight = mean_weight * wide_scale[:, None, None, None]
    tensors["quant_conv.weight"] = torch.cat([mean_weight, log_weight]).float()
    tensors["quant_conv.bias"] = torch.cat([mean_bias, log_bias + 2 * wide_scale.log()]).float()
    out, out_bias = tensors["post_quant_conv.weight"].double(), tensors["post_quant_conv.bias"].double()
    tensors["post_quant_conv.weight"] = (out / wide_scale[None, :, None, None]).float()
    tensors["post_quant_conv.bias"] = (out_bias + out[:, :, 0, 0] @ wide_shift).float()
    return tensors


def _made_here(folder: Path, config: ModelConfig, report: Report) -> tuple[Tensors, dict[str, Any], str]:
    autoencoder, _ = load_tensors(folder / "autoencoder.safetensors")
    extras: dict[str, Any] = {"epoch": 0, "global_step": int(config.about.get("step", 0) or 0)}
    extras["pytorch-lightning_version"] = "1.4.2"
    factor, shift, scale = single_scale(folder, config)
    if config.diffusion is None and factor != 1.0:
        raise UserError(
            f"a first stage alone with a scaling of {factor:g} cannot be exported: the original keeps the factor with "
            "the second stage; export with --format diffusers"
        )
    if not is_identity(shift, scale):
        autoencoder = fold_scaling(autoencoder, shift, scale)
        report("the scaling per channel was folded into the autoencoder's 1x1 convolutions; scale_factor is 1")
    raw = dump_original(config, factor, report, _text_model(folder))
    raw[SECTION] = dump_declared(config, _tokenizer(folder))
    notes_aside(folder, config, report)
    if config.diffusion is None:
        return autoencoder, extras, yaml.safe_dump(raw, sort_keys=False)
    denoiser, _ = load_tensors(folder / "denoiser.safetensors")
    state = _buffers(config)
    state |= {UNET + key: tensor for key, tensor in denoiser.items()}
    state |= {FIRST_STAGE + key: tensor for key, tensor in autoencoder.items()}
    state |= _conditioner(folder, config, autoencoder)
    table = state.get(f"{CONDITIONER}transformer.token_emb.weight")
    if table is not None:  # a fitted tokenizer may have fewer entries than the configuration allows
        raw["model"]["params"]["cond_stage_config"]["params"]["vocab_size"] = len(table)
    return state, extras, yaml.safe_dump(raw, sort_keys=False)


def _tokenizer(folder: Path) -> str | None:
    path = folder / TOKENIZER_FILE
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _text_model(folder: Path) -> TextModel | None:
    """Kind and width of the CLIP in the model folder; its activation distinguishes OpenAI's from OpenCLIP's."""
    path = folder / FOLDER / "config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    return ("clip" if config.get("hidden_act") == "quick_gelu" else "open-clip"), int(config["hidden_size"])


def _buffers(config: ModelConfig) -> Tensors:
    assert config.diffusion is not None
    schedule = build_schedule(config.diffusion.schedule)
    if not isinstance(schedule, DiscreteSchedule):
        raise UserError("a flow schedule cannot be exported: the original has a table of noise levels")
    return schedule_buffers(schedule.betas)


def _conditioner(folder: Path, config: ModelConfig, autoencoder: Tensors) -> Tensors:
    assert config.diffusion is not None
    conditioner = config.diffusion.conditioner
    text = _text_model(folder)
    if text is not None:
        return original_tensors(folder / FOLDER, text[0])
    path = folder / "conditioner.safetensors"
    tensors = load_tensors(path)[0] if path.exists() else {}
    if conditioner.kind == "class" and conditioner.output == "vector":
        return {f"{UNET}label_emb.weight": tensors["embedding.weight"]}
    if conditioner.kind == "composite":
        if all(part.kind == "image" for part in conditioner.parts.values()):
            return {CONDITIONER + key: tensor for key, tensor in autoencoder.items()}
        return {}
    state = {CONDITIONER + key: tensor for key, tensor in tensors.items()}
    embedding = state.get(f"{CONDITIONER}transformer.token_emb.weight")
    head = f"{CONDITIONER}transformer.to_logits."
    if embedding is not None and f"{head}weight" not in state:  # never used, but the original's module has it
        state |= {f"{head}weight": torch.zeros_like(embedding), f"{head}bias": torch.zeros(len(embedding))}
    return state
