"""Published diffusion transformers (DiT, SiT) -> model folders, with the first stage taken from elsewhere.

Peebles and Xie 2023 (arXiv 2212.09748) and Ma et al. 2024 (arXiv 2401.08740) publish the same network under the same
keys, but train it for other targets on other times:

    DiT   predicts the noise and a share between two variances, given the step 0 .. 999 of a linear schedule
    SiT   predicts the velocity from noise to data, given the share of data, 1 - t

Both have twice the latent's channels: the second half is DiT's variance, and without use in SiT. The samplers here need
the first half alone, the mean, so the second is left out. SiT's velocity is this project's with the sign turned, which
the last layer takes up. Their files have no first stage: they were trained on Stable Diffusion's (f = 8, four channels,
scale 0.18215).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sfumato.checkpoint import save_tensors, write_text
from sfumato.conditioning.condition import ConditionSpec
from sfumato.config import parse, to_yaml
from sfumato.counts import how_many
from sfumato.denoiser.dit import DiT, DiTConfig, positions
from sfumato.errors import UserError
from sfumato.foreign import short
from sfumato.interop.lazy import LazyTensor
from sfumato.interop.members import check_finite
from sfumato.interop.original import Imported
from sfumato.interop.placement import Weights
from sfumato.interop.prefixes import AVERAGED
from sfumato.interop.source import Source
from sfumato.model import LatentDiffusion, ModelConfig
from sfumato.nn.init import without_weights
from sfumato.versions import replacing_folder

Predicts = Literal["eps", "flow"]
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Heads of the published widths (S, B, L, XL), which shapes do not show."""
MARKS = ("x_embedder.proj.weight", "y_embedder.embedding_table.weight", "final_layer.adaLN_modulation.1.weight")
"""Keys that together mean a DiT or SiT with classes."""
POSITIONS = 1e-3
"""Largest difference of stored positions from the formula; half precision rounds them by 5e-4."""

Tensors = Mapping[str, LazyTensor]


@dataclass(frozen=True)
class Published:
    """A network under its published keys."""

    tensors: Tensors
    averaged: bool = False
    notes: tuple[str, ...] = ()


def find_transformer(source: Source, weights: Weights | None = None) -> Published | None:
    """The DiT or SiT of a file whose keys are as stored; None where it has none.

    Files of a training have live and averaged weights (`model`, `ema`): the averaged ones unless `weights` is live.
    """
    found: dict[bool, str] = {}
    for key in source.tensors:
        if key.endswith(MARKS[0]):
            prefix = key.removesuffix(MARKS[0])
            if all(prefix + mark in source.tensors for mark in MARKS):
                found[not AVERAGED.isdisjoint(prefix.split("."))] = prefix
    if not found:
        return None
    averaged = found.keys() != {False} and not (weights == "live" and False in found)
    if weights is not None and averaged != (weights == "ema"):
        raise UserError(f"{source.path} has no {weights} weights: leave out --weights {weights}")
    prefix = found[averaged]
    tensors = {key.removeprefix(prefix): value for key, value in source.tensors.items() if key.startswith(prefix)}
    if prefix == "":  # the other set, below its own prefix, is not a part of this one
        others = tuple(other for other in found.values() if other)
        tensors = {key: value for key, value in tensors.items() if not (others and key.startswith(others))}
    notes = []
    if len(found) == 2:
        chosen, other = ("averaged", "live") if averaged else ("live", "averaged")
        notes.append(f"the file has averaged and live weights: the {chosen} ones are used, the {other} left out")
    return Published(tensors, averaged, (*source.notes, *notes))


def import_transformer(
    source: Source,
    published: Published,
    folder: Path,
    first: LatentDiffusion | None,
    prediction: str | None,
    heads: int | None = None,
) -> Imported:
    """Writes the model folder of a DiT or SiT.

    Args:
        source: the file.
        published: the network in it.
        folder: where to write.
        first: a model with the first stage.
        prediction: eps (DiT) or flow (SiT), which the keys do not show.
        heads: attention heads, for other widths than the published ones.

    Raises UserError where one of them is missing or does not fit, and for a missing, misshapen or left-over key.
    """
    predicts = _predicts(source.path, prediction)
    config, channels = read_config(published.tensors, heads, predicts, source.path)
    if first is None:
        raise UserError(
            f"{source.path} is a diffusion transformer without a first stage: give --autoencoder, the autoencoder that "
            "it was trained on (Stable Diffusion's for the published ones) as a model folder, file or diffusers folder"
        )
    if first.autoencoder.latent_channels != channels:
        raise UserError(
            f"--autoencoder has latents of {first.autoencoder.latent_channels} channels, {source.path} needs "
            f"{channels}: give the autoencoder that it was trained on"
        )
    rows, width = _shape(published.tensors, "y_embedder.embedding_table.weight", 2, source.path)
    size = _latent_side(published.tensors, config, source.path) * first.autoencoder.factor
    network = read_network(published.tensors, config, channels, predicts, source.path)
    conditioner = {"kind": "class", "classes": rows - 1, "dim": width, "output": "vector"}
    described = _described(config, conditioner, predicts, first, size, source, published)
    table = published.tensors["y_embedder.embedding_table.weight"].load().float()
    check_finite([("y_embedder.embedding_table.weight", table)], source.path)
    with replacing_folder(folder) as fresh:
        save_tensors(fresh / "autoencoder.safetensors", first.autoencoder.state_dict())
        save_tensors(fresh / "scaling.safetensors", first.scaling.state_dict())
        save_tensors(fresh / "denoiser.safetensors", network.state_dict())
        save_tensors(fresh / "conditioner.safetensors", {"embedding.weight": table})
        write_text(fresh / "config.yaml", to_yaml(described))
    return Imported(folder, described, (*published.notes, *_notes(published.tensors, config, channels, rows, first)))


def _predicts(path: Path, prediction: str | None) -> Predicts:
    if prediction == "eps" or prediction == "flow":
        return "eps" if prediction == "eps" else "flow"
    given = "" if prediction is None else f", not --prediction {prediction}"
    raise UserError(
        f"{path} is a DiT, which predicts eps, or a SiT, which predicts the velocity; their keys are the same: give "
        f"--prediction eps or --prediction flow{given}"
    )


def read_config(tensors: Tensors, heads: int | None, predicts: Predicts, path: Path) -> tuple[DiTConfig, int]:
    """The network's configuration and the latent's channels, from the shapes of its keys."""
    kernel = _shape(tensors, "x_embedder.proj.weight", 4, path)
    width, channels, patch, across = kernel
    inner = _shape(tensors, "blocks.0.mlp.fc1.weight", 2, path)[0]
    if patch != across or inner % width:
        raise UserError(
            f"{path}: patches of {patch}x{across} and {inner} channels inside a feed-forward branch of {width} are not "
            "those of a DiT"
        )
    heads = heads or HEADS.get(width)
    if heads is None:
        raise UserError(
            f"{path} has blocks of {width} channels, whose attention heads its keys do not show (known are "
            f"{', '.join(map(str, HEADS))}): give --heads"
        )
    depth = len({key.split(".")[1] for key in tensors if key.startswith("blocks.")})
    raw = {
        "kind": "dit",
        "patch": patch,
        "width": width,
        "depth": depth,
        "heads": heads,
        "expansion": inner // width,
        "time": "index" if predicts == "eps" else "clean-share",
        "vector_projection": "none",
    }
    return parse(raw, DiTConfig, str(path)), channels


def _shape(tensors: Tensors, key: str, axes: int, path: Path) -> tuple[int, ...]:
    if key not in tensors:
        raise UserError(f"{path} lacks the key {key!r} of a DiT")
    shape = tensors[key].shape
    if len(shape) != axes or 0 in shape:
        raise UserError(f"{path}: the key {key!r} has shape {tuple(shape)}, which is not a DiT's")
    return shape


def _latent_side(tensors: Tensors, config: DiTConfig, path: Path) -> int:
    """The side of the training latents. Raises UserError for positions other than the fixed ones."""
    patches = math.isqrt(_shape(tensors, "pos_embed", 3, path)[1])
    check_positions(tensors["pos_embed"], "pos_embed", patches, config.width, path)
    return patches * config.patch


def check_positions(stored: LazyTensor, key: str, side: int, width: int, path: Path) -> None:
    """Raises UserError unless stored positions are the fixed ones of a square of side × side patches."""
    if tuple(stored.shape) != (1, side * side, width):
        raise UserError(
            f"{path}: the key {key!r} has shape {tuple(stored.shape)}, not one row for each patch of a square"
        )
    if not torch.allclose(stored.load()[0].float(), positions(side, side, width, None), atol=POSITIONS, rtol=0):
        raise UserError(
            f"{path}: its positions ({key}) are not the fixed sines and cosines of DiT; others are not supported"
        )


def read_network(tensors: Tensors, config: DiTConfig, channels: int, predicts: Predicts, path: Path) -> DiT:
    """The network with its weights, in float32."""
    with without_weights():
        network = DiT(config, channels, ConditionSpec(vector_dim=config.width))
    used = {"pos_embed", "y_embedder.embedding_table.weight"}
    found: dict[str, Tensor] = {}
    for key, parameter in network.state_dict().items():
        theirs = key.replace("time_embed.", "t_embedder.mlp.")
        if theirs not in tensors:
            raise UserError(f"{path} lacks the key {theirs!r} of a DiT with {config.depth} blocks")
        used.add(theirs)
        tensor = tensors[theirs].load().float()
        check_finite([(theirs, tensor)], path)
        if key.startswith("final_layer.linear."):
            tensor = _first_half(tensor, config.patch, channels, path)
            tensor = tensor if predicts == "eps" else -tensor
        if tensor.shape != parameter.shape:
            raise UserError(
                f"{path}: the key {theirs!r} has shape {tuple(tensor.shape)}, a DiT with {config.depth} blocks of "
                f"{config.width} channels has {tuple(parameter.shape)}"
            )
        found[key] = tensor.contiguous()
    left = sorted(set(tensors) - used)
    if left:
        raise UserError(
            f"{path} has {how_many(len(left), 'key')} of no known use in a DiT, the first is {short(left[0])}"
        )
    network.load_state_dict(found, assign=True)
    return network


def _first_half(tensor: Tensor, patch: int, channels: int, path: Path) -> Tensor:
    """The rows of the last layer for the first `channels` channels of every place in a patch."""
    places = patch * patch
    if tensor.shape[0] == places * channels:
        return tensor
    if tensor.shape[0] != 2 * places * channels:
        raise UserError(
            f"{path}: the last layer has {tensor.shape[0]} rows, neither {channels} nor {2 * channels} channels for "
            f"each of the {places} places in a patch"
        )
    return halves(tensor, patch, channels)[0]


def halves(tensor: Tensor, patch: int, channels: int) -> tuple[Tensor, Tensor]:
    """The rows of the last layer for the first and for the second `channels` channels of every place in a patch."""
    rows = tensor.unflatten(0, (patch * patch, 2, channels))
    return rows[:, 0].flatten(0, 1), rows[:, 1].flatten(0, 1)


def _described(
    config: DiTConfig,
    conditioner: Mapping[str, Any],
    predicts: Predicts,
    first: LatentDiffusion,
    size: int,
    source: Source,
    published: Published,
) -> ModelConfig:
    weights = {"weights": "ema" if published.averaged else "live"}
    raw: dict[str, Any] = {
        "autoencoder": first.config.autoencoder.model_dump(),
        "image_size": (size, size),
        "about": {"imported": source.path.name, **weights},
        "diffusion": {
            "denoiser": config.model_dump(),
            "conditioner": dict(conditioner),
            "schedule": {"kind": "linear"} if predicts == "eps" else {"kind": "flow"},
            "prediction": predicts,
            "condition_dropout": 0.1,
        },
    }
    return parse(raw, ModelConfig, str(source.path))


def _notes(tensors: Tensors, config: DiTConfig, channels: int, rows: int, first: LatentDiffusion) -> list[str]:
    notes = [
        f"classes: {rows - 1}; the last row of the table is the class of unconditional samples",
        f"the latents are scaled as those of the first stage, by {first.scaling.scale[0].item():.6g}; DiT and SiT were "
        "published with 0.18215",
    ]
    if tensors["final_layer.linear.weight"].shape[0] == 2 * channels * config.patch**2:
        notes.append("the second half of the outputs, a learned variance, is left out: samplers need the mean alone")
    return notes


def summary(published: Published, path: Path) -> list[str]:
    """Lines about the network, for a reader; its heads are left out where its width is not a published one."""
    kernel = _shape(published.tensors, "x_embedder.proj.weight", 4, path)
    config, channels = read_config(published.tensors, None if kernel[0] in HEADS else 1, "eps", path)
    rows = published.tensors["y_embedder.embedding_table.weight"].shape[0]
    heads = f"{config.heads} heads" if config.width in HEADS else "heads not known"
    return [
        "first stage: none, `sfumato import` takes it from --autoencoder",
        f"denoiser: a DiT or SiT of {config.depth} blocks of {config.width} channels, {heads}, patches of "
        f"{config.patch}, latents of {channels} channels",
        f"conditioning: {rows - 1} classes and an unconditional one",
    ]
