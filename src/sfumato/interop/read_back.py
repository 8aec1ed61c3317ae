"""Verification of exports: the files are read back by sfumato's importer and compared before the export is accepted."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.autoencoder.model import Autoencoder
from sfumato.autoencoder.scaling import Scaling
from sfumato.checkpoint import check_finite, load_into, load_tensors
from sfumato.conditioning.condition import Condition, Conditioner, ConditionSpec
from sfumato.conditioning.sources import read_tokenizer
from sfumato.conditioning.table import build_conditioner
from sfumato.config import load_config
from sfumato.counts import how_many
from sfumato.denoiser.network import Denoiser
from sfumato.denoiser.table import build_denoiser
from sfumato.denoiser.unet import UNet
from sfumato.errors import UserError
from sfumato.interop.declared import difference
from sfumato.interop.diffusers_import import import_diffusers
from sfumato.interop.expressible import parts_of
from sfumato.interop.infer import EMA
from sfumato.interop.original import KEPT_FILE, import_original
from sfumato.interop.placement import Weights
from sfumato.interop.text_encoders import FOLDER, place_of, read_text_config
from sfumato.model import CONFIG_FILE, TOKENIZER_FILE, DiffusionConfig, ModelConfig
from sfumato.nn.init import without_weights

TOLERANCE = 1e-5
"""Largest accepted difference of an output, relative to its largest number: rounding of float32."""
SEED = 17


@dataclass(frozen=True)
class Networks:
    """The networks of a model folder, in float32 or as stored; a pretrained text encoder is not loaded."""

    config: ModelConfig
    autoencoder: Autoencoder
    scaling: Scaling
    denoiser: Denoiser | None
    conditioner: Conditioner | None
    spec: ConditionSpec


def check_export(model: Path, opened: Networks, exported: Path, config: Path | None, scratch: Path) -> None:
    """Imports the written files and compares them with the exported model.

    Compared are the configurations (see `declared.difference`), the names and values of all
    parameters, and the outputs of encoder, decoder, conditioner and denoiser with the scaling, for fixed random inputs.

    Args:
        model: the model folder.
        opened: its networks.
        exported: the checkpoint, or the diffusers folder.
        config: the YAML of an original checkpoint.
        scratch: a folder that is created for the import and removed afterwards.

    Raises UserError naming the first difference.
    """
    try:
        back = _imported(model, exported, config, scratch)
        with torch.no_grad():
            found = _compared(opened, open_networks(back))
        found = found or _other_text_encoder(model, back)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if found is not None:
        raise UserError(
            f"the export was not written: read back, {found}; use the model folder as it is, and report this with its "
            f"{CONFIG_FILE}"
        )


def _imported(model: Path, exported: Path, config: Path | None, scratch: Path) -> Path:
    try:
        if config is None:
            return import_diffusers(exported, scratch).folder
        return import_original(exported, scratch, config, _weights(model)).folder
    except UserError as error:
        raise UserError(
            f"the export was not written: it cannot be read back ({error}); use the model folder as it is"
        ) from None


def _weights(model: Path) -> Weights | None:
    """Which of a stored checkpoint's two sets of weights the model uses; None where there may be only one."""
    if not (model / KEPT_FILE).exists():
        return None
    rows = load_tensors(model / KEPT_FILE)[1]["keys"]
    return None if any(key.startswith(EMA) for key, _, part, _ in rows if part is not None) else "live"


# -- opening ----------------------------------------------------------------------------------------------------------


def open_networks(folder: Path) -> Networks:
    """Raises UserError for missing, misshapen or non-finite weights."""
    config = load_config(str(folder / CONFIG_FILE), [], ModelConfig)
    with without_weights():
        autoencoder = Autoencoder(config.autoencoder)
        scaling = Scaling.from_factor(autoencoder.latent_channels, 1.0)
    _fill(autoencoder, folder / "autoencoder.safetensors")
    _fill(scaling, folder / "scaling.safetensors")
    if config.diffusion is None:
        return Networks(config, autoencoder, scaling, None, None, ConditionSpec())
    conditioner = _conditioner(config, folder)
    spec = conditioner.spec if conditioner is not None else _spec(config, folder)
    with without_weights():
        denoiser = build_denoiser(config.diffusion.denoiser, autoencoder.latent_channels, spec)
    _fill(denoiser, folder / "denoiser.safetensors")
    return Networks(config, autoencoder, scaling, denoiser, conditioner, spec)


def _fill(module: nn.Module, path: Path) -> None:
    load_into(module, load_tensors(path)[0], str(path))
    module.eval().requires_grad_(False)


def _conditioner(config: ModelConfig, folder: Path) -> Conditioner | None:
    """The conditioner with its weights; None without one, or with a pretrained encoder."""
    assert config.diffusion is not None
    if not parts_of(config.diffusion) or any(part.kind == "pretrained-text" for part in parts_of(config.diffusion)):
        return None
    stored = folder / TOKENIZER_FILE
    tokenizer = read_tokenizer(stored) if stored.is_file() else None
    made = build_conditioner(config.diffusion.conditioner, tokenizer)
    assert made is not None
    _fill(made, folder / "conditioner.safetensors")
    return made


def _spec(config: ModelConfig, folder: Path) -> ConditionSpec:
    """The condition fields of the denoiser besides a pretrained text's tokens, or none at all."""
    assert config.diffusion is not None
    parts = parts_of(config.diffusion)
    if not parts:
        return ConditionSpec()
    extra = sum(part.channels for part in parts if part.kind in ("image", "semantic"))
    source = next(part.source for part in parts if part.kind == "pretrained-text")
    return ConditionSpec(
        token_dim=int(read_text_config(place_of(source, folder))["hidden_size"]), spatial_channels=extra
    )


# -- comparing --------------------------------------------------------------------------------------------------------


def _compared(model: Networks, back: Networks) -> str | None:
    """The first difference in words, or None."""
    return difference(model.config, back.config) or _other_parameters(model, back) or _other_outputs(model, back)


def _other_parameters(model: Networks, back: Networks) -> str | None:
    """Values must be equal except where a scaling was folded or heads have another order."""
    scaling = back.scaling.state_dict()
    folded = any(not torch.equal(value, scaling[name]) for name, value in model.scaling.state_dict().items())
    same_order = _order(model) == _order(back)
    for name, ours, theirs in _modules(model, back):
        if (ours is None) != (theirs is None):
            return f"there is {'no' if theirs is None else 'a'} {name}"
        if ours is None or theirs is None:
            continue
        own, other = ours.state_dict(), theirs.state_dict()
        if own.keys() != other.keys():
            return f"the {name} has other keys, such as {sorted(own.keys() ^ other.keys())[0]!r}"
        for key, value in own.items():
            moved = (folded and "quant_conv." in key) or (not same_order and ".qkv." in key)
            if not moved and not torch.equal(value, other[key].to(value.dtype)):
                return f"the {name}'s {key!r} has other values"
    return None


def _modules(model: Networks, back: Networks) -> list[tuple[str, nn.Module | None, nn.Module | None]]:
    return [
        ("autoencoder", model.autoencoder, back.autoencoder),
        ("denoiser", model.denoiser, back.denoiser),
        ("conditioner", model.conditioner, back.conditioner),
    ]


def _order(networks: Networks) -> str | None:
    return networks.denoiser.config.attention_order if isinstance(networks.denoiser, UNet) else None


def _other_outputs(model: Networks, back: Networks) -> str | None:
    first, other = outputs(model), outputs(back)
    for name, value in first.items():
        error = _relative(value, other[name])
        if not error <= TOLERANCE:
            return f"the {name} differs by {error:.3g} of its largest number (at most {TOLERANCE:g} is rounding)"
    return None


def _relative(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / one.abs().max().clamp_min(1e-30)).item()


def outputs(networks: Networks) -> dict[str, Tensor]:
    """The networks' outputs for fixed random inputs, in model latents."""
    random = torch.Generator().manual_seed(SEED)
    f, C = networks.autoencoder.factor, networks.autoencoder.latent_channels
    image = torch.rand(1, networks.config.autoencoder.image_channels, 2 * f, 3 * f, generator=random) * 2 - 1
    latent = torch.randn(1, C, 2, 3, generator=random)
    encoded = networks.autoencoder.latent_from_moments(networks.autoencoder.encode(image).moments)
    made = {
        "encoder's latent": networks.scaling.to_model(encoded),
        "decoder's image": networks.autoencoder.decode(networks.scaling.to_raw(latent)),
    }
    if networks.denoiser is None or networks.config.diffusion is None:
        return {name: value.float() for name, value in made.items()}
    factor = networks.config.diffusion.denoiser.factor
    H, W = 2 * factor, 3 * factor
    condition = _random_condition(networks, (H, W), random)
    if networks.conditioner is not None:
        assert networks.config.diffusion is not None
        fields = random_fields(networks.config.diffusion, networks.conditioner, (H, W), random)
        condition = networks.conditioner(fields)
        made |= {f"conditioner's {name}": value for name, value in condition.tensors().items()}
    noisy = torch.randn(1, C, H, W, generator=random)
    dtype = next(networks.denoiser.parameters()).dtype
    made["denoiser's prediction"] = networks.denoiser(noisy.to(dtype), torch.tensor([321.0]), condition)
    return {name: value.float() for name, value in made.items()}


def _random_condition(networks: Networks, size: tuple[int, int], random: torch.Generator) -> Condition:
    """A random condition with the fields of the denoiser; a batch of one."""
    spec = networks.spec
    return Condition(
        vector=None if spec.vector_dim is None else torch.randn(1, spec.vector_dim, generator=random),
        tokens=None if spec.token_dim is None else torch.randn(1, 5, spec.token_dim, generator=random),
        spatial=torch.randn(1, spec.spatial_channels, *size, generator=random) if spec.spatial_channels else None,
    )


def random_fields(
    config: DiffusionConfig, conditioner: Conditioner, size: tuple[int, int], random: torch.Generator
) -> Mapping[str, Any]:
    """Random fields for a conditioner and a latent of size (h, w); a batch of one. Not for pretrained text encoders."""
    fields: dict[str, Any] = {}
    for part in parts_of(config):
        match part.kind:
            case "class":
                fields["label"] = torch.tensor([part.classes - 1])
            case "text":
                fields["tokens"] = torch.randint(_rows(conditioner), (1, part.max_tokens), generator=random)
            case "layout":
                fields["layout_tokens"] = torch.randint(part.vocabulary, (1, part.length), generator=random)
            case "semantic":
                side = 2**part.stages
                fields["map"] = torch.rand(1, part.classes, size[0] * side, size[1] * side, generator=random)
            case "image":
                fields[part.field] = torch.randn(1, part.channels, *size, generator=random)
            case "embeddings":
                fields[part.field] = torch.randn(1, 5, part.dim, generator=random)
    return fields


def _rows(conditioner: Conditioner) -> int:
    """Entries of the text conditioner's token table."""
    return min(len(t) for name, t in conditioner.state_dict().items() if name.endswith("token_emb.weight"))


def _other_text_encoder(model: Path, back: Path) -> str | None:
    """A pretrained encoder's tensors must be equal; an unused last layer may be missing."""
    if not (model / FOLDER / "model.safetensors").is_file():
        return None
    if not (back / FOLDER / "model.safetensors").is_file():
        return "there is no text encoder"
    ours, theirs = (load_tensors(folder / FOLDER / "model.safetensors")[0] for folder in (model, back))
    check_finite(ours, str(model / FOLDER))
    wrong = next((key for key, value in theirs.items() if key not in ours or not torch.equal(ours[key], value)), None)
    if wrong is not None:
        return f"the text encoder's {wrong!r} has other values"
    layers = {key.split(".layers.")[1].split(".")[0] for key in ours.keys() - theirs.keys() if ".layers." in key}
    others = [key for key in ours.keys() - theirs.keys() if ".layers." not in key and "position_ids" not in key]
    if others or len(layers) > 1:
        return f"the text encoder lacks {how_many(len(ours.keys() - theirs.keys()), 'tensor')}"
    return None
