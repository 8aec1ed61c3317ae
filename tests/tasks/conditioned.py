"""Tiny untrained models of every task, whose conditions are felt."""

from sfumato.model import LatentDiffusion
from tiny import UNCONDITIONAL, model

SEMANTIC = "diffusion.conditioner={kind: semantic, classes: 5, stages: 1, void: 255}"
LAYOUT = (
    "diffusion.conditioner={kind: layout, classes: 4, objects: 3, vocabulary: 99, dim: 16, depth: 1, heads: 2, "
    "head_dim: 8}"
)
SMALL = "diffusion.conditioner={kind: image, field: low_resolution, channels: 3}"
MASKED = (
    "diffusion.conditioner={kind: composite, parts: {masked_image: {kind: image, field: masked_latent, channels: 3}, "
    "mask: {kind: image, field: mask, channels: 1}}}"
)
STABLE = (
    "diffusion.conditioner={kind: composite, parts: {mask: {kind: image, field: mask, channels: 1}, "
    "masked_image: {kind: image, field: masked_latent, channels: 3}, "
    "tokens: {kind: text, dim: 16, depth: 1, heads: 2, head_dim: 8, max_tokens: 8}}}"
)
NOT_DROPPED = "diffusion.condition_dropout=0"


def plain(*overrides: str) -> LatentDiffusion:
    return model(UNCONDITIONAL, NOT_DROPPED, *overrides)


def semantic(*overrides: str) -> LatentDiffusion:
    return model(SEMANTIC, *overrides)


def layout(*overrides: str) -> LatentDiffusion:
    return model(LAYOUT, *overrides)


def enlarging(*overrides: str) -> LatentDiffusion:
    return model(SMALL, NOT_DROPPED, *overrides)


def masked(*overrides: str) -> LatentDiffusion:
    return model(MASKED, NOT_DROPPED, *overrides)
