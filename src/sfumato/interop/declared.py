"""A section of sfumato's own in exported files, which other readers ignore, for data that their formats cannot store.

An exported model contains its whole configuration (except the notes on its training) and its fitted tokenizer in
addition to the format's own data: under the key `sfumato` of the original's YAML, in `sfumato.yaml` of a diffusers
folder. An import reads class names, the conditioner's own options, condition dropout, the schedule's parameters and the
training size from there, if both describe the same networks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from sfumato.autoencoder.tiny_file import FILE as TINY_FILE
from sfumato.conditioning.class_label import ClassConfig
from sfumato.counts import how_many
from sfumato.denoiser.dit import DiTConfig
from sfumato.diffusion.schedule import ScheduleConfig, build_schedule
from sfumato.documents import parse_yaml, read_text
from sfumato.errors import UserError
from sfumato.interop.expressible import effective_groups, parts_of, unet_of
from sfumato.model import DiffusionConfig, ModelConfig

SECTION = "sfumato"
FILE = "sfumato.yaml"
CLOSE = 1e-5
"""Largest relative difference of a schedule from its float32 table."""


@dataclass(frozen=True)
class Declared:
    """The configuration of such a section, and the text of its fitted tokenizer."""

    config: ModelConfig
    tokenizer: str | None = None


def dump_declared(config: ModelConfig, tokenizer: str | None) -> dict[str, Any]:
    """The section, as plain data for YAML."""
    plain: dict[str, Any] = {"config": config.model_copy(update={"about": {}}).model_dump(mode="json")}
    return plain if tokenizer is None else {**plain, "tokenizer": tokenizer}


def notes_aside(folder: Path, config: ModelConfig, report: Callable[[str], None]) -> None:
    """Notes on what other programs will not read, and what is not exported."""
    H, W = config.image_size
    extras = [f"its training size {H}x{W}"] if H != W else []
    named = config.diffusion is not None and isinstance(config.diffusion.denoiser, DiTConfig)  # by DiTPipeline, too
    if config.classes and not named:
        extras.append(f"the names of its {how_many(len(config.classes), 'class', 'classes')}")
    extras += (
        ["the metadata of its conditions"] if config.conditioning_metadata.model_dump(exclude_defaults=True) else []
    )
    if extras:
        report(f"only sfumato reads {' and '.join(extras)}: they are in the section {SECTION!r}")
    if (folder / TINY_FILE).exists():
        report(f"the tiny decoder {TINY_FILE} is not exported: distil it again after an import")


def parse_declared(raw: Any) -> Declared | None:
    """The section of a file; None if there is none, or of an unknown version."""
    if not isinstance(raw, Mapping):
        return None
    tokenizer = raw.get("tokenizer")
    try:
        config = ModelConfig.model_validate(raw.get("config"))
    except ValidationError:
        return None
    return Declared(config, tokenizer if isinstance(tokenizer, str) else None)


def read_declared(folder: Path) -> Declared | None:
    """The section of a diffusers folder."""
    try:
        return parse_declared(parse_yaml(read_text(folder / FILE), FILE))
    except UserError:  # it is a file of ours in another program's folder: without it the import still works
        return None


def adopted(found: ModelConfig, declared: Declared | None, report: Callable[[str], None]) -> ModelConfig:
    """The declared configuration if it describes the networks that were found, else the configuration read from
    them."""
    if declared is None:
        return found
    differs = difference(found, declared.config)
    if differs is not None:
        report(f"the section {SECTION!r} is left out, for {differs}")
        return found
    return declared.config.model_copy(update={"about": {**found.about}})


def difference(one: ModelConfig, other: ModelConfig) -> str | None:
    """The difference that makes two configurations different networks, in words; None if they compute the same.

    Names, the training size, condition dropout and settings of training are not compared, nor options that have no
    effect on the network in question.
    """
    first, second = _autoencoder_facts(one), _autoencoder_facts(other)
    if (one.diffusion is None) != (other.diffusion is None):
        return "only one of them has a second stage"
    if one.diffusion is not None and other.diffusion is not None:
        first |= _diffusion_facts(one, one.diffusion)
        second |= _diffusion_facts(other, other.diffusion)
        if not _same_schedule(one.diffusion.schedule, other.diffusion.schedule):
            schedules = [_described(diffusion.schedule) for diffusion in (one.diffusion, other.diffusion)]
            return f"the schedule is {schedules[0]} in one and {schedules[1]} in the other"
    for name, value in first.items():
        if second.get(name) != value:
            return f"{name} is {value} in one and {second.get(name)} in the other"
    return None


def _autoencoder_facts(config: ModelConfig) -> dict[str, Any]:
    c = config.autoencoder
    pixels = c.bottleneck.kind == "pixels"
    facts = c.model_dump(include={"image_channels", "channels", "channel_multipliers", "blocks_per_level"})
    facts |= {"attention": c.attention, "attention_levels": sorted(c.attention_levels)}
    facts |= {"latent_channels": None if pixels else c.latent_channels, "embed_channels": c.raw_channels}
    facts |= {"norm groups": effective_groups(c), "bottleneck": c.bottleneck.kind, "padding": c.padding}
    if c.bottleneck.kind == "vq":
        facts |= {"codes": c.bottleneck.codes, "normalise": c.bottleneck.normalise}
    return {f"autoencoder.{name}": value for name, value in facts.items()}


def _diffusion_facts(model: ModelConfig, config: DiffusionConfig) -> dict[str, Any]:
    made = _transformer_facts(model, config.denoiser) if isinstance(config.denoiser, DiTConfig) else _unet_facts(config)
    named = {f"denoiser.{name}": value for name, value in made.items()}
    tables = {part.kind: part.classes for part in parts_of(config) if isinstance(part, ClassConfig)}
    named |= {"conditioner.classes": tables} if isinstance(config.denoiser, DiTConfig) else {}
    return {"denoiser.kind": config.denoiser.kind, **named, "prediction": config.prediction}


def _transformer_facts(model: ModelConfig, config: DiTConfig) -> dict[str, Any]:
    """Positions are compared as they are at the training size."""
    facts = config.model_dump(exclude={"kind", "position_grid", "dropout", "flow_map"})
    patches = max(model.image_size) // model.autoencoder.factor // config.patch
    return {**facts, "position scale": (config.position_grid or patches) / patches}


def _unet_facts(config: DiffusionConfig) -> dict[str, Any]:
    c = unet_of(config)
    widths = [c.channels * m for m in c.channel_multipliers]
    heads = {width: c.heads or width // (c.head_channels or width) for width in c.attended_widths()}
    facts: dict[str, Any] = {"widths": widths, "blocks_per_level": c.blocks_per_level, "heads": heads}
    facts |= {"attended levels": [2**level in c.attention_factors for level in range(len(widths))]}
    facts |= {"resample": c.resample, "scale_shift_norm": c.scale_shift_norm, "norm_groups": c.norm_groups}
    parts = parts_of(config)
    if any(_gives_tokens(part) for part in parts):
        facts |= {"transformer_depth": c.transformer_depth, "linear_projections": c.linear_projections}
    if any(_gives_vector(part) for part in parts):
        facts |= {"vector_projection": c.vector_projection}
    facts |= {"tokens": any(map(_gives_tokens, parts)), "vector": any(map(_gives_vector, parts))}
    facts |= {"map channels": sum(part.channels for part in parts if part.kind in ("image", "semantic"))}
    return facts


def _gives_tokens(part: Any) -> bool:
    return part.kind in ("text", "layout", "embeddings", "pretrained-text") or (
        part.kind == "class" and part.output == "token"
    )


def _gives_vector(part: Any) -> bool:
    return (part.kind == "class" and part.output == "vector") or (part.kind == "text" and part.pooled)


def _same_schedule(one: ScheduleConfig, other: ScheduleConfig) -> bool:
    if one.steps != other.steps or (one.kind == "flow") != (other.kind == "flow"):
        return False
    if one.kind == "flow":
        return True
    t = torch.arange(1, one.steps + 1, dtype=torch.float64) / one.steps
    (alpha, sigma), (other_alpha, other_sigma) = build_schedule(one)(t), build_schedule(other)(t)
    close = torch.allclose(alpha, other_alpha, rtol=CLOSE, atol=CLOSE)
    return close and torch.allclose(sigma, other_sigma, rtol=CLOSE, atol=CLOSE)


def _described(schedule: ScheduleConfig) -> str:
    return ", ".join(f"{name} {value}" for name, value in schedule.model_dump().items())
