"""Model folders -> diffusers folders that its pipelines load: the originally imported one, or a new one."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from sfumato.checkpoint import load_tensors, replacing, write_text
from sfumato.config import load_config
from sfumato.denoiser.dit import DiTConfig
from sfumato.errors import UserError
from sfumato.interop.declared import FILE, dump_declared, notes_aside
from sfumato.interop.diffusers_component import WEIGHTS, read_json
from sfumato.interop.diffusers_config import write_autoencoder, write_scheduler, write_unet
from sfumato.interop.diffusers_folder import TRANSFORMER
from sfumato.interop.diffusers_import import CONDITIONER_FOLDER, STORE, VARIANCE
from sfumato.interop.diffusers_keys import Entry, autoencoder_entries, unet_entries
from sfumato.interop.diffusers_transformer import NAME, TABLE, transformer_tensors, write_names, write_transformer
from sfumato.interop.expressible import refuse_for_diffusers, unet_of
from sfumato.interop.expressible_transformer import MOST_CLASSES
from sfumato.interop.original import config_text, digest
from sfumato.interop.original_export import fold_scaling, is_identity, narrowed, single_scale
from sfumato.interop.text_encoders import FOLDER, outside_the_folder, write_as_last_layer
from sfumato.model import CONFIG_FILE, DiffusionConfig, ModelConfig
from sfumato.model_folder import find_folder
from sfumato.plain_json import to_json

Report = Callable[[str], None]
Json = dict[str, Any]


def export_diffusers(model: Path | str, out: Path | str) -> tuple[str, ...]:
    """Writes a model folder as a diffusers folder, and returns notes on what could not be exported.

    An autoencoder alone becomes AutoencoderKL or VQModel; a diffusion model becomes a pipeline folder: vae or vqvae,
    unet, scheduler, and for a CLIP text model its text encoder and tokenizer; a diffusion transformer with classes
    becomes a DiTPipeline. A folder that was imported from diffusers is exported with its original configurations.

    Raises UserError for anything that diffusers cannot express.
    """
    folder, out = find_folder(model), Path(out)
    notes: list[str] = []
    config = load_config(str(folder / CONFIG_FILE), [], ModelConfig)
    stored = _stored(folder, config)
    if stored is None:
        refuse_for_diffusers(config, folder)
    tensors, _ = load_tensors(folder / "autoencoder.safetensors")
    factor, shift, scale = _scale(folder, config, stored)
    if not is_identity(shift, scale):
        tensors = fold_scaling(tensors, shift, scale)
        notes.append("the scaling per channel was folded into the autoencoder's 1x1 convolutions; scaling_factor is 1")
    first = out if config.diffusion is None else out / _autoencoder_name(config, stored)
    if stored is None:
        first_config = write_autoencoder(config.autoencoder, factor, max(config.image_size))
    else:
        first_config = stored["autoencoder"]
    entries = autoencoder_entries(tensors, len(config.autoencoder.channel_multipliers))
    _write_component(first, first_config, entries, tensors, _dtype(stored, "autoencoder"))
    if config.diffusion is not None:
        write = _write_dit_pipeline if isinstance(config.diffusion.denoiser, DiTConfig) else _write_pipeline
        write(folder, out, config, config.diffusion, stored, notes.append)
    if stored is None:
        write_text(out / FILE, yaml.safe_dump(dump_declared(config, None), sort_keys=False, allow_unicode=True))
        notes_aside(folder, config, notes.append)
    return tuple(notes)


def _stored(folder: Path, config: ModelConfig) -> Json | None:
    """The configurations stored by an import from diffusers, unless the configuration or the scaling changed since."""
    path = folder / STORE / "manifest.json"
    if not path.is_file():
        return None
    manifest = read_json(path)
    if manifest["config"] != config_text(config):
        return None
    names = ("autoencoder", "unet", TRANSFORMER, "scheduler", "model_index")
    kept = {
        name: read_json(folder / STORE / f"{name}.json") for name in names if (folder / STORE / f"{name}.json").exists()
    }
    return {
        **kept,
        "dtypes": manifest["dtypes"],
        "digests": manifest.get("digests", {}),
        "place": manifest["autoencoder"],
    }


def _scale(folder: Path, config: ModelConfig, stored: Json | None) -> tuple[float, Tensor, Tensor]:
    if stored is not None:
        return 1.0, torch.zeros(1), torch.ones(1)
    return single_scale(folder, config)


def _dtype(stored: Json | None, part: str) -> torch.dtype:
    name = "float32" if stored is None else str(stored["dtypes"].get(part, "float32"))
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def _autoencoder_name(config: ModelConfig, stored: Json | None) -> str:
    if stored is not None:
        return str(stored["place"])
    assert config.diffusion is not None
    transformer = isinstance(config.diffusion.denoiser, DiTConfig)
    return "vae" if transformer or config.diffusion.conditioner.kind == "pretrained-text" else "vqvae"


def _write_component(
    folder: Path, config: Json, entries: Mapping[str, Entry], tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    theirs: dict[str, Tensor] = {}
    for key, entry in entries.items():
        theirs |= {name: narrowed(part, dtype).contiguous() for name, part in entry.to_theirs(tensors[key]).items()}
    _save(folder, config, theirs)


def _save(folder: Path, config: Json, tensors: dict[str, Tensor]) -> None:
    with replacing(folder / f"{WEIGHTS}.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_text(folder / "config.json", to_json(config, indent=2) + "\n")


# -- pipeline ---------------------------------------------------------------------------------------------------------


def _write_pipeline(
    folder: Path, out: Path, config: ModelConfig, diffusion: DiffusionConfig, stored: Json | None, report: Report
) -> None:
    conditioner: Any = diffusion.conditioner
    parts = list(conditioner.parts.values()) if conditioner.kind == "composite" else [conditioner]
    extra = sum(part.channels for part in parts if part.kind in ("image", "semantic"))
    table = next((part for part in parts if part.kind == "class" and part.output == "vector"), None)
    token_dim = _token_dim(folder, parts)
    if table is not None and unet_of(diffusion).vector_projection == "mlp":
        raise UserError("a class vector that passes through an MLP cannot be exported: diffusers adds it as it is")
    classes = None if table is None else table.classes + (table.null == "learned")
    size = (config.image_size[0] // config.autoencoder.factor, config.image_size[1] // config.autoencoder.factor)
    raw = config.autoencoder.raw_channels
    unet = stored["unet"] if stored else write_unet(unet_of(diffusion), raw, extra, token_dim, classes, size)
    scheduler = stored["scheduler"] if stored else write_scheduler(diffusion.schedule, diffusion.prediction)
    tensors, _ = load_tensors(folder / "denoiser.safetensors")
    entries = unet_entries(tensors, unet_of(diffusion), token_dim is not None)
    theirs: dict[str, Tensor] = {}
    dtype = _dtype(stored, "denoiser")
    for key, entry in entries.items():
        theirs |= {name: narrowed(part, dtype).contiguous() for name, part in entry.to_theirs(tensors[key]).items()}
    if table is not None:
        own, _ = load_tensors(folder / "conditioner.safetensors")
        theirs["class_embedding.weight"] = narrowed(own["embedding.weight"], dtype)
    _save(out / "unet", unet, theirs)
    write_text(out / "scheduler" / "scheduler_config.json", to_json(scheduler, indent=2) + "\n")
    for name in (FOLDER, "tokenizer"):
        if (folder / name).is_dir():
            shutil.copytree(folder / name, out / name, dirs_exist_ok=True)
    pretrained = next((part for part in parts if part.kind == "pretrained-text"), None)
    if pretrained is not None and pretrained.layer == "penultimate":
        write_as_last_layer(folder / FOLDER, out / FOLDER)
        report("the text encoder is read before its last layer, which was therefore left out of it, as diffusers does")
    index = stored["model_index"] if stored else _index(folder, config, unet, scheduler)
    write_text(out / "model_index.json", to_json(index, indent=2) + "\n")
    _write_conditioner(folder, out, conditioner, parts, report)


def _token_dim(folder: Path, parts: list[Any]) -> int | None:
    for part in parts:
        if part.kind == "pretrained-text":
            source = folder / part.source / "config.json"
            if not source.is_file():
                raise outside_the_folder(part.source)
            return int(read_json(source)["hidden_size"])
        if part.kind in ("text", "layout", "embeddings") or (part.kind == "class" and part.output == "token"):
            return int(part.dim)
    return None


def _index(folder: Path, config: ModelConfig, unet: Json, scheduler: Json) -> Json:
    clip = (folder / FOLDER).is_dir()
    name = "StableDiffusionPipeline" if clip else "LDMPipeline"
    index = _common_index(name, config, scheduler) | {"unet": ["diffusers", unet["_class_name"]]}
    if clip:
        index |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None]}
        index["requires_safety_checker"] = False
    return index


def _common_index(name: str, config: ModelConfig, scheduler: Json) -> Json:
    first = _autoencoder_name(config, None)
    kind = "VQModel" if config.autoencoder.bottleneck.kind == "vq" else "AutoencoderKL"
    return {
        "_class_name": name,
        "_diffusers_version": "0.30.0",
        "scheduler": ["diffusers", scheduler["_class_name"]],
        first: ["diffusers", kind],
    }


def _write_dit_pipeline(
    folder: Path, out: Path, config: ModelConfig, diffusion: DiffusionConfig, stored: Json | None, report: Report
) -> None:
    denoiser, channels = diffusion.denoiser, config.autoencoder.raw_channels
    assert isinstance(denoiser, DiTConfig)
    tensors, _ = load_tensors(folder / "denoiser.safetensors")
    table = load_tensors(folder / "conditioner.safetensors")[0][TABLE]
    scheduler = stored["scheduler"] if stored else write_scheduler(diffusion.schedule, diffusion.prediction)
    side = config.image_size[0] // config.autoencoder.factor
    transformer = stored[TRANSFORMER] if stored else write_transformer(denoiser, channels, side)
    variance = _variance(folder, tensors, stored, report)
    if not variance and transformer.get("out_channels") is not None:
        transformer = {**transformer, "out_channels": channels}
    classes = transformer.get("num_embeds_ada_norm", MOST_CLASSES)
    if classes > len(table) - 1:
        report(
            f"classes {len(table) - 1} to {classes - 1} of the table are copies of the unconditional one, since "
            f"DiTPipeline expects that one at {MOST_CLASSES}"
        )
    theirs = transformer_tensors(tensors, table, variance, denoiser, channels, classes)
    dtype = _dtype(stored, "denoiser")
    _save(out / TRANSFORMER, transformer, {key: narrowed(part, dtype).contiguous() for key, part in theirs.items()})
    write_text(out / "scheduler" / "scheduler_config.json", to_json(scheduler, indent=2) + "\n")
    if stored:
        index = stored["model_index"]
    else:
        index = _common_index("DiTPipeline", config, scheduler) | {TRANSFORMER: ["diffusers", NAME]}
        index |= {"id2label": write_names(config.classes)} if config.classes else {}
    write_text(out / "model_index.json", to_json(index, indent=2) + "\n")


def _variance(folder: Path, tensors: Mapping[str, Tensor], stored: Json | None, report: Report) -> Mapping[str, Tensor]:
    """The rows of an imported DiT's last layer that predict a variance; none where its weights changed since."""
    path = folder / STORE / VARIANCE
    if not path.is_file():
        return {}
    if stored is None or digest(tensors) != stored["digests"].get("denoiser"):
        report("the learned variance of the imported network is left out, since the model changed after the import")
        return {}
    return load_tensors(path)[0]


def _write_conditioner(folder: Path, out: Path, conditioner: Any, parts: list[Any], report: Report) -> None:
    """Stores conditioners without a diffusers class in sfumato's format, where an import finds them."""
    own_table = conditioner.kind == "class" and conditioner.output == "vector"
    if own_table or all(part.kind in ("none", "pretrained-text") for part in parts):
        return
    target = out / CONDITIONER_FOLDER
    text = to_json(conditioner.model_dump(mode="json"), indent=2)
    write_text(target / "config.json", text + "\n")
    for name in ("conditioner.safetensors", "tokenizer.json"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    names = {"text": "text transformer", "layout": "layout transformer", "semantic": "map projection"}
    names |= {"class": "class table"}
    found = [names[part.kind] for part in parts if part.kind in names]
    if found:
        described = " and ".join(found)
        report(
            f"diffusers has no class for this model's {described}: it is in {CONDITIONER_FOLDER}/, in sfumato's format"
        )
