"""Configurations that another format cannot express: refused by name before anything is written.

Only settings that change a network's output are refused. Others (names of classes, the training size of an oblong
image, condition dropout) are stored in sfumato's section: see `declared.py`.
"""

import math
from pathlib import Path
from typing import Any

from sfumato.autoencoder.model import AutoencoderConfig
from sfumato.conditioning.table import PartConfig
from sfumato.denoiser.dit import DiTConfig
from sfumato.denoiser.unet import UNetConfig
from sfumato.errors import UserError
from sfumato.interop.expressible_transformer import refuse_transformer
from sfumato.interop.text_encoders import FOLDER, outside_the_folder, read_text_config
from sfumato.model import DiffusionConfig, ModelConfig

ORIGINAL_GROUPS = 32
CLIP_TYPES = ("clip", "clip_text_model")


def refuse_for_original(config: ModelConfig, folder: Path) -> None:
    """Raises UserError for anything that the original's YAML, checkpoint and code cannot express, with a remedy.

    Args:
        config: the model's configuration.
        folder: the model folder, which contains a pretrained text encoder.
    """
    _refuse_student(config)
    if config.diffusion is not None:
        unet_of(config.diffusion)
    _refuse_pixels(config.autoencoder)
    _refuse_padding(config.autoencoder)
    _refuse_original_norms(config)
    diffusion = config.diffusion
    if diffusion is None:
        return
    for part in parts_of(diffusion):
        _refuse_vector(part, diffusion, "the original's")
        if part.kind in ("text", "layout") and part.mask_padding:
            raise UserError(
                f"a {part.kind} conditioner with mask_padding cannot be exported: the original attends padding tokens, "
                "so its embeddings would differ; export with --format diffusers, or train with mask_padding: false"
            )
        if part.kind == "layout" and (part.box != "corners" or not part.crop_tokens):
            raise UserError(
                f"a layout conditioner with box: {part.box}, crop_tokens: {str(part.crop_tokens).lower()} cannot be "
                "exported: the original's layouts are two corners an object and two tokens for the crop; "
                "export with --format diffusers, which includes the conditioner in sfumato's format"
            )
        if part.kind == "pretrained-text":
            _refuse_pretrained(part, folder, "the original")
            clip = read_text_config(folder / FOLDER).get("hidden_act") == "quick_gelu"
            if clip and part.layer == "penultimate":
                raise UserError(
                    "a CLIP text encoder read at layer: penultimate cannot be exported: the original's code leaves out "
                    "the last norm there; export with --format diffusers"
                )
    kinds = [(part.kind, part.channels if part.kind == "image" else 0) for part in parts_of(diffusion)]
    masked = ("image", config.autoencoder.raw_channels)
    if kinds[-1:] == [("pretrained-text", 0)] and len(kinds) == 3 and kinds[:2] != [("image", 1), masked]:
        raise UserError(
            "this order of conditions cannot be exported: the original's inpainting takes the mask of one channel, "
            "then the masked image's latent, then the text; export with --format diffusers"
        )


def refuse_for_diffusers(config: ModelConfig, folder: Path) -> None:
    """Raises UserError for anything that the classes and pipelines of diffusers cannot express, with a remedy.

    Args:
        config: the model's configuration.
        folder: the model folder, which contains a pretrained text encoder.
    """
    _refuse_student(config)
    diffusion = config.diffusion
    transformer = None if diffusion is None or not isinstance(diffusion.denoiser, DiTConfig) else diffusion.denoiser
    if diffusion is not None and transformer is not None:
        refuse_transformer(config, diffusion, transformer)
    elif diffusion is not None:
        unet_of(diffusion)
    _refuse_pixels(config.autoencoder)
    _refuse_padding(config.autoencoder)
    autoencoder_groups(config.autoencoder)
    if diffusion is None or transformer is not None:
        return
    parts = parts_of(diffusion)
    for part in parts:
        _refuse_vector(part, diffusion, "diffusers'")
        if part.kind == "class" and part.output == "vector" and len(parts) > 1:
            raise UserError(
                "a class vector together with other conditions cannot be exported: diffusers' U-Nets are read with one "
                "or the other; give the class as a token (output: token)"
            )
        if part.kind == "pretrained-text":
            _refuse_pretrained(part, folder, "diffusers' pipelines")
            _refuse_other_length(part, folder)


def parts_of(diffusion: DiffusionConfig) -> list[PartConfig]:
    """The conditioners of a second stage, without kind none."""
    conditioner = diffusion.conditioner
    if conditioner.kind == "composite":
        return list(conditioner.parts.values())
    return [] if conditioner.kind == "none" else [conditioner]


def effective_groups(config: AutoencoderConfig) -> dict[int, int]:
    """Channels of a norm -> its groups, for all norms of a first stage."""
    widths = sorted({config.channels * m for m in config.channel_multipliers})
    return {width: math.gcd(config.norm_groups, width) for width in widths}


def autoencoder_groups(config: AutoencoderConfig) -> int:
    """The common number of groups of all norms of a first stage. Raises UserError where they differ."""
    found = effective_groups(config)
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{groups} at {width} channels" for width, groups in found.items())
        raise UserError(
            f"a first stage whose norms have different numbers of groups ({listed}, by norm_groups: "
            f"{config.norm_groups}) cannot be exported: diffusers has one number for all; train with norm_groups: "
            f"{math.gcd(*found)}, or use the model folder as it is"
        )
    return next(iter(found.values()))


def _refuse_student(config: ModelConfig) -> None:
    student = None if config.diffusion is None else config.diffusion.student
    if student is not None:
        raise UserError(
            "a student cannot be exported: its network is also given the end of the step and the guidance scale, which "
            f"no other program passes on; export its teacher, the model {student.teacher}"
        )


def unet_of(diffusion: DiffusionConfig) -> UNetConfig:
    """The denoiser's configuration. Raises UserError where it is no U-Net: the original has no other network."""
    if not isinstance(diffusion.denoiser, UNetConfig):
        others = "--format diffusers or onnx" if isinstance(diffusion.denoiser, DiTConfig) else "--format onnx"
        raise UserError(
            f"a denoiser of kind {diffusion.denoiser.kind} cannot be exported: the format stores a U-Net; use the "
            f"model folder as it is, or {others}"
        )
    return diffusion.denoiser


def _refuse_pixels(config: AutoencoderConfig) -> None:
    if config.bottleneck.kind == "pixels":
        raise UserError(
            "a model in pixel space (bottleneck: pixels) cannot be exported: both formats store a first stage, which "
            "it does not have; use the model folder as it is"
        )


def _refuse_padding(config: AutoencoderConfig) -> None:
    if config.padding != "zeros":
        raise UserError(
            f"a first stage with padding: {config.padding} cannot be exported: the convolutions of both formats are "
            "padded with zeros, so its images would differ at the border; use the model folder as it is, or "
            "--format onnx"
        )


def _refuse_original_norms(config: ModelConfig) -> None:
    groups = effective_groups(config.autoencoder)
    other = next((width for width, found in groups.items() if found != ORIGINAL_GROUPS), None)
    if other is not None:
        raise UserError(
            f"a first stage with norm_groups: {config.autoencoder.norm_groups} (norms of {groups[other]} groups at "
            f"{other} channels) cannot be exported: the original's norms always have {ORIGINAL_GROUPS} groups, and its "
            "configuration cannot express another number; export with --format diffusers, or train with norm_groups: 32"
        )
    if config.diffusion is not None and unet_of(config.diffusion).norm_groups != ORIGINAL_GROUPS:
        raise UserError(
            f"a U-Net with norm_groups: {unet_of(config.diffusion).norm_groups} cannot be exported: the original's "
            f"norms always have {ORIGINAL_GROUPS} groups, and its configuration cannot express another number; export "
            "with --format diffusers, or train with norm_groups: 32"
        )


def _refuse_vector(part: PartConfig, diffusion: DiffusionConfig, whose: str) -> None:
    if part.kind == "crop":
        raise UserError(
            f"a model conditioned on the crop of the image (conditioner.kind crop) cannot be exported: {whose} "
            "U-Net has no input for it; use the model folder as it is"
        )
    if part.kind == "text" and part.pooled:
        raise UserError(
            f"a text conditioner with pooled: true cannot be exported: it also reaches the U-Net through the time "
            f"embedding, for which {whose} text models have no input; train with pooled: false"
        )
    if part.kind == "class" and part.output == "vector" and unet_of(diffusion).vector_projection == "mlp":
        raise UserError(
            f"a class vector that passes through an MLP cannot be exported: {whose} U-Net adds it as it is; train with "
            "denoiser.vector_projection: none"
        )


def _refuse_pretrained(part: Any, folder: Path, who: str) -> None:
    if not (folder / FOLDER / "config.json").is_file() or part.source != FOLDER:
        raise outside_the_folder(part.source)
    kind = str(read_text_config(folder / FOLDER).get("model_type", "clip_text_model"))
    if kind not in CLIP_TYPES:
        raise UserError(f"a text encoder of type {kind} cannot be exported: {who} can only name CLIP's here")
    if part.mask_padding:
        raise UserError(
            f"a pretrained text encoder with mask_padding cannot be exported: {who} attend padding tokens, so the "
            "embeddings would differ; set mask_padding: false and train with it"
        )


def _refuse_other_length(part: Any, folder: Path) -> None:
    settings = folder / "tokenizer" / "tokenizer_config.json"
    if not settings.is_file():
        return
    length = read_text_config(settings.parent, settings.name).get("model_max_length")
    if isinstance(length, int) and length < 100_000 and length != part.max_tokens:
        raise UserError(
            f"max_tokens: {part.max_tokens} cannot be exported: diffusers' pipelines pad to the tokenizer's "
            f"model_max_length, {length}; set that to {part.max_tokens} in {settings.name}"
        )
