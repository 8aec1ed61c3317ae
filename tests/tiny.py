"""Tiny models of both stages without a zero weight."""

from collections.abc import Sequence
from typing import Any

import torch

from sfumato.conditioning.condition import Condition
from sfumato.conditioning.tokenizer import fit_tokenizer
from sfumato.config import apply_overrides, parse
from sfumato.model import LatentDiffusion, ModelConfig, build
from sfumato.pipeline.conditions import ConditionInputs, conditions_for, source_of

TEXTS = ["a red apple", "two blue discs", "a flat green hill"]
CONFIG: dict[str, Any] = {
    "autoencoder": {"channels": 8, "channel_multipliers": [1, 2], "blocks_per_level": 1, "latent_channels": 3},
    "image_size": [16, 24],
    "classes": ["round", "square"],
    "diffusion": {
        "denoiser": {"channels": 32, "channel_multipliers": [1, 2], "blocks_per_level": 1, "attention_factors": [2]},
        "conditioner": {"kind": "text", "dim": 16, "depth": 1, "heads": 2, "head_dim": 8, "max_tokens": 8},
        "schedule": {"kind": "scaled-linear"},
        "prediction": "v",
        "condition_dropout": 0.1,
    },
}
BY_CLASS = "diffusion.conditioner={kind: class, classes: 2, dim: 8}"
UNCONDITIONAL = "diffusion.conditioner={kind: none}"
VQ = "autoencoder.bottleneck={kind: vq, codes: 16}"


def model(*overrides: str) -> LatentDiffusion:
    """An untrained model, ready for use."""
    config = parse(apply_overrides(CONFIG, overrides), ModelConfig, "tiny")
    torch.manual_seed(0)
    built = build(config, fit_tokenizer(TEXTS, 512))
    g = torch.Generator().manual_seed(1)
    for part in built.parts().values():
        for parameter in part.parameters():  # no zero layers, or every condition would give the same image
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=g)
        part.eval().requires_grad_(False)
    built.scaling.shift.copy_(torch.tensor([0.1, -0.2, 0.3]))
    built.scaling.scale.copy_(torch.tensor([0.5, 1.5, 2.0]))
    return built


def conditions(
    model: LatentDiffusion, n: int, prompts: Sequence[str] | None = None
) -> tuple[Condition, Condition | None]:
    """The condition of n samples of the training size, and the unconditional one."""
    made = conditions_for(source_of(model), n, model.latent_shape[1:], ConditionInputs(prompts))
    return made.condition, made.null
