"""A plan as configurations of `sfumato train autoencoder` and `sfumato train diffusion`; the user's settings."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfumato.config import apply_overrides, parse
from sfumato.data.kinds import kind_of
from sfumato.errors import UserError
from sfumato.fit.networks import FIRST, SECOND, attention_factors, conditioner_settings
from sfumato.fit.plan import FitPlan, StagePlan, explained_again
from sfumato.training.autoencoder_run import AutoencoderRun, AutoencoderTraining
from sfumato.training.diffusion_run import DiffusionRun, DiffusionTraining

STAGES = ("autoencoder", "diffusion")
DATA = "data"
PREVIEWS = 4
"""Of a training."""
CONDITION_MEAN = 0.5
"""Weight of the loss by which captions alone predict the mean latent: the order of words is learned sooner."""
SPECTRAL_PROBABILITY = 0.5
"""Share of stage 1's steps without high frequencies, where the plan has them (docs/results/latents.md)."""
LEAST_SAVES, MOST_SECONDS_BETWEEN = 4, 120.0
"""A run is saved so often, and at least every this many seconds: a killed run repeats that much."""


def settings_by_stage(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """The settings `a.b=c` of stage 1 and of stage 2.

    `autoencoder.a.b=c` and `diffusion.a.b=c` are for one stage; without such a beginning a setting is for each stage
    that has its section: `model` and `loss` are those of stage 1, `denoiser`, `conditioner`, `schedule`, `objective`,
    `conditions` and `mirrored` those of stage 2, `data`, `held_out` and `train` of both.
    Raises UserError for a section that neither has, and for `start`, which both have with different meanings.
    """
    sections = {"autoencoder": AutoencoderRun.model_fields.keys(), "diffusion": DiffusionRun.model_fields.keys()}
    found: dict[str, list[str]] = {stage: [] for stage in STAGES}
    for override in overrides:
        first, _, rest = override.partition(".")
        if first in STAGES and rest:
            found[first].append(rest)
            continue
        section = first.partition("=")[0]
        stages = [stage for stage in STAGES if section in sections[stage]]
        if not stages:
            known = sorted(sections["autoencoder"] | sections["diffusion"])
            raise UserError(
                f"override {override!r} begins with none of {', '.join(known)}: see `sfumato fit --help`, or name the "
                "stage: autoencoder.train.batch=8, diffusion.train.batch=64"
            )
        if section == "start":
            raise UserError(f"override {override!r}: name the stage, autoencoder.{override} or diffusion.{override}")
        for stage in stages:
            found[stage].append(override)
    return found["autoencoder"], found["diffusion"]


def data_settings(overrides: Sequence[str]) -> list[str]:
    """The settings of the images, which hold for the survey of the folder as well."""
    first, second = settings_by_stage(overrides)
    return [one for one in dict.fromkeys((*first, *second)) if one.startswith(f"{DATA}.")]


def autoencoder_run(plan: FitPlan, folder: Path, overrides: Sequence[str] = ()) -> AutoencoderRun:
    """The configuration of stage 1. Raises UserError for settings that do not fit it."""
    network = next(each for each in FIRST if each.name == plan.first.network)
    raw = {
        "model": {
            "channels": network.channels,
            "channel_multipliers": [width // network.channels for width in network.widths(plan.factor)],
            "blocks_per_level": network.blocks,
            "norm_groups": network.groups,
            "latent_channels": plan.latent_channels,
            "bottleneck": {"kind": "kl", "initial_log_variance": -6.0},
        },
        "data": {**_data(plan, folder), "flip": plan.mirrored},
        "held_out": {"amount": plan.held_out, "by": plan.held_out_by},
        "loss": {
            "pixel": "l2",
            "kl_weight": 5.0e-3 if plan.perceptual else 1.0e-3,
            "perceptual": {"kind": "efficientnet-lite0", "weight": 0.1} if plan.perceptual else {"kind": "none"},
            "adversarial": _adversarial(plan),
            "spectral": {"probability": SPECTRAL_PROBABILITY if plan.spectral else 0.0},
        },
        "train": {**_train(plan, plan.first), "preview_images": 32},
    }
    return parse(apply_overrides(raw, settings_by_stage(overrides)[0], AutoencoderRun), AutoencoderRun, "stage 1")


def diffusion_run(plan: FitPlan, folder: Path, overrides: Sequence[str] = ()) -> DiffusionRun:
    """The configuration of stage 2. Raises UserError for settings that do not fit it."""
    network = next(each for each in SECOND if each.name == plan.second.network)
    multipliers = network.multipliers(plan.latent_side)
    raw: dict[str, Any] = {
        "denoiser": {
            "channels": network.channels,
            "channel_multipliers": list(multipliers),
            "blocks_per_level": network.blocks,
            "attention_factors": attention_factors(multipliers, plan.latent_side),
            "heads": 4,
            "scale_shift_norm": True,
            "norm_groups": network.channels // 8,
        },
        "conditioner": _conditioner(plan, network.text),
        "schedule": {"kind": "flow"},
        "objective": {
            "prediction": "flow",
            "times": {"kind": "logit-normal"},
            "weighting": {"kind": "learned"},
            "stratified": True,
            "condition_mean": CONDITION_MEAN if plan.conditioner == "text" else 0.0,
        },
        "data": _data(plan, folder),
        "held_out": {"amount": plan.held_out, "by": plan.held_out_by},
        "mirrored": plan.mirrored,
        "train": {**_train(plan, plan.second), "condition_dropout": 0.1},
    }
    if plan.conditioner in ("semantic", "layout"):
        raw["conditions"] = {"map": {}} if plan.conditioner == "semantic" else {"boxes": {}}
    return parse(apply_overrides(raw, settings_by_stage(overrides)[1], DiffusionRun), DiffusionRun, "stage 2")


def with_settings(plan: FitPlan, folder: Path, overrides: Sequence[str]) -> FitPlan:
    """The plan with the steps and batches that the user has set. Raises UserError for settings that do not fit it."""
    first, second = autoencoder_run(plan, folder, overrides), diffusion_run(plan, folder, overrides)
    changed = replace(
        plan,
        first=_as_set(plan.first, first.train),
        second=_as_set(plan.second, second.train),
        spectral=first.loss.spectral.probability > 0,
    )
    return plan if changed == plan else explained_again(changed)


def _as_set(stage: StagePlan, train: AutoencoderTraining | DiffusionTraining) -> StagePlan:
    """The stage with the batch of a training and its steps: of one of minutes, as many as are likely to fit."""
    changed = replace(stage, steps=train.steps, batch=train.batch, accumulate=train.accumulate)
    if train.minutes is None:
        return changed
    fitting = int(60 * train.minutes / (stage.image_seconds * train.batch * train.accumulate))
    fewest, most = train.step_limits or (1, fitting)
    return replace(changed, steps=max(fewest, min(most, fitting)))


def _data(plan: FitPlan, folder: Path) -> dict[str, Any]:
    some = {} if plan.images >= plan.data.total else {"most_images": plan.images}
    # the label maps are no images to train on in stage 1 either
    aside = {"leave_out": ["maps", "classes.txt"]} if plan.data.maps else {}
    return {"kind": kind_of(str(folder)), "path": str(folder), "size": plan.size, **some, **aside}


def _conditioner(plan: FitPlan, text: int) -> dict[str, Any]:
    if plan.conditioner == "class":
        return {"kind": "class", "classes": len(plan.data.classes), "dim": 2 * text}
    return conditioner_settings(plan.conditioner, text, plan.data.caption_tokens, plan.data.captions, plan.factor)


def _adversarial(plan: FitPlan) -> dict[str, Any]:
    if not plan.adversarial:
        return {"weight": 0.0}
    steps = plan.first.steps
    ramp = {"start": 7 * steps // 10, "warmup_steps": steps // 20, "ramp_steps": steps // 10}
    return {"weight": 0.1, "channels": 32, "layers": 2, "norm": "group", **ramp}


def _train(plan: FitPlan, stage: StagePlan) -> dict[str, Any]:
    """Settings that both loops have. The average reaches over the last twenty-fifth of the steps."""
    seconds = max(stage.seconds, 1e-6)
    saves = max(LEAST_SAVES, round(seconds / MOST_SECONDS_BETWEEN))
    return {
        "steps": stage.steps,
        "batch": stage.batch,
        "accumulate": stage.accumulate,
        "optimiser": {
            "method": "muon",
            "learning_rate": 4.0e-3,
            "warmup_steps": min(100, max(10, stage.steps // 20)),
            "weight_decay": 0.0,
            "tail_fraction": 0.5,
        },
        "ema_decay": round(min(0.9995, max(0.98, 1 - 25 / stage.steps)), 5),
        "log_every": max(1, stage.steps // 200),
        "preview_every": max(1, -(-stage.steps // PREVIEWS)),
        "save_every": max(1, stage.steps // saves),
        "workers": 2 if plan.machine.device == "cuda" else 1,
    }
