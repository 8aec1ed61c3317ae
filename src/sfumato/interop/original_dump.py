"""Our configuration -> the original's YAML: the other direction of original_yaml.py."""

from collections.abc import Callable
from typing import Any, Literal

from sfumato.autoencoder.model import AutoencoderConfig, VQConfig
from sfumato.conditioning.pretrained import PretrainedTextConfig
from sfumato.denoiser.unet import UNetConfig
from sfumato.diffusion.schedule import CosineConfig, LinearConfig, ScaledLinearConfig, SqrtConfig
from sfumato.errors import UserError
from sfumato.interop.expressible import unet_of
from sfumato.model import DiffusionConfig, ModelConfig

Report = Callable[[str], None]
LATENT_DIFFUSION = "ldm.models.diffusion.ddpm.LatentDiffusion"
ENCODERS = "ldm.modules.encoders.modules."
TextModel = tuple[Literal["clip", "open-clip"], int]
IDENTITY = {"target": "torch.nn.Identity"}
BERT_HEADS = (8, 64)
CLIP_TOKENS = 77
ORIGINAL_MAX_BETA = 0.999
SCHEDULES = {ScaledLinearConfig: "linear", LinearConfig: "sqrt_linear", SqrtConfig: "sqrt"}


def dump_original(config: ModelConfig, scale: float, report: Report, text: TextModel | None = None) -> dict[str, Any]:
    """The original configuration of a model, as plain data for YAML.

    Args:
        config: the model's configuration.
        scale: the single factor between raw and model latent.
        report: called with a note on every difference in the original's code.
        text: kind and width of a pretrained text encoder.

    Raises UserError for anything that the original cannot express.
    """
    resolution = max(config.image_size)
    if config.diffusion is None:
        return {"model": _autoencoder(config.autoencoder, resolution, interface=False)}
    diffusion = config.diffusion
    if diffusion.prediction == "flow":
        raise UserError(
            "a flow model cannot be exported: the original predicts eps, x0 or v on a table of noise levels"
        )
    key, stage, extra, token_dim, classes = _conditioner(config, report, text)
    raw = config.autoencoder.raw_channels
    params: dict[str, Any] = {
        **_schedule(diffusion, report),
        "parameterization": diffusion.prediction,
        "first_stage_key": "image",
        "cond_stage_key": _stage_key(diffusion),
        "image_size": resolution // config.autoencoder.factor,
        "channels": raw,
        "cond_stage_trainable": False,
        "conditioning_key": key,
        "concat_mode": key == "concat",
        "scale_factor": scale,
        "use_ema": False,
        "unet_config": _unet(
            unet_of(diffusion), resolution // config.autoencoder.factor, raw, extra, token_dim, classes
        ),
        "first_stage_config": _autoencoder(config.autoencoder, resolution, interface=True),
        "cond_stage_config": stage,
    }
    return {"model": {"base_learning_rate": 1e-6, "target": LATENT_DIFFUSION, "params": params}}


def _autoencoder(config: AutoencoderConfig, resolution: int, interface: bool) -> dict[str, Any]:
    vq = config.bottleneck if isinstance(config.bottleneck, VQConfig) else None
    if vq is not None and vq.normalise:
        raise UserError(
            "a codebook on the unit sphere (normalise) cannot be exported: the original compares by distance"
        )
    ddconfig = {
        "double_z": vq is None,
        "z_channels": config.latent_channels,
        "resolution": resolution,
        "in_channels": config.image_channels,
        "out_ch": config.image_channels,
        "ch": config.channels,
        "ch_mult": list(config.channel_multipliers),
        "num_res_blocks": config.blocks_per_level,
        "attn_resolutions": [resolution // 2**level for level in config.attention_levels],
        "dropout": config.dropout,
    }
    if config.attention != "softmax":
        ddconfig["attn_type"] = config.attention
    params: dict[str, Any] = {"embed_dim": config.raw_channels}
    name = "AutoencoderKL"
    if vq is not None:
        params["n_embed"] = vq.codes
        name = "VQModelInterface" if interface else "VQModel"
    params |= {"ddconfig": ddconfig, "lossconfig": dict(IDENTITY)}
    return {"target": f"ldm.models.autoencoder.{name}", "params": params}


def _schedule(diffusion: DiffusionConfig, report: Report) -> dict[str, Any]:
    schedule = diffusion.schedule
    if isinstance(schedule, CosineConfig) and not schedule.zero_terminal_snr:
        if schedule.max_beta != ORIGINAL_MAX_BETA:
            report(
                f"the cosine schedule's max_beta {schedule.max_beta:g} is in the checkpoint's buffers, not in the YAML"
            )
        return {"timesteps": schedule.steps, "beta_schedule": "cosine", "cosine_s": schedule.offset}
    if isinstance(schedule, ScaledLinearConfig | LinearConfig | SqrtConfig):
        if schedule.zero_terminal_snr:
            report("zero terminal SNR is in the checkpoint's buffers; the YAML's schedule does not show it")
        name = SCHEDULES[type(schedule)]
        return {
            "timesteps": schedule.steps,
            "beta_schedule": name,
            "linear_start": schedule.start,
            "linear_end": schedule.end,
        }
    if schedule.kind == "flow":
        raise UserError("a flow schedule cannot be exported: the original has a table of noise levels")
    report(f"the {schedule.kind} schedule is in the checkpoint's buffers; the YAML names another, which they overwrite")
    return {"timesteps": schedule.steps, "beta_schedule": "linear", "linear_start": 0.0015, "linear_end": 0.0195}


def _unet(
    config: UNetConfig, size: int, latent: int, extra: int, token_dim: int | None, classes: int | None
) -> dict[str, Any]:
    params: dict[str, Any] = {
        "image_size": size,
        "in_channels": latent + extra,
        "out_channels": latent,
        "model_channels": config.channels,
        "attention_resolutions": list(config.attention_factors),
        "num_res_blocks": config.blocks_per_level,
        "channel_mult": list(config.channel_multipliers),
        "dropout": config.dropout,
    }
    if config.heads is not None:
        params["num_heads"] = config.heads
    else:
        params["num_head_channels"] = config.head_channels
    if token_dim is not None:
        params |= {"use_spatial_transformer": True, "context_dim": token_dim}
        params["transformer_depth"] = config.transformer_depth
    options = {
        "num_classes": classes,
        "resblock_updown": config.resample == "residual",
        "use_scale_shift_norm": config.scale_shift_norm,
        "use_new_attention_order": config.attention_order == "qkv_first",
        "use_linear_in_transformer": config.linear_projections,
    }
    params |= {key: value for key, value in options.items() if value}
    if config.resample == "pool":
        params["conv_resample"] = False
    return {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": params}


# -- conditioning -----------------------------------------------------------------------------------------------------

Conditioned = tuple[str | None, Any, int, int | None, int | None]
"""conditioning_key, cond_stage_config, channels besides the latent, token width, classes of the U-Net's own table."""


def _stage_key(diffusion: DiffusionConfig) -> str:
    names = {"class": "class_label", "text": "caption", "pretrained-text": "txt", "layout": "coordinates_bbox"}
    names |= {"semantic": "segmentation"}
    conditioner = diffusion.conditioner
    if conditioner.kind == "image":
        return "LR_image" if conditioner.field == "low_resolution" else conditioner.field
    return names.get(conditioner.kind, "image")


def _conditioner(config: ModelConfig, report: Report, text: TextModel | None) -> Conditioned:
    assert config.diffusion is not None
    c = config.diffusion.conditioner
    match c.kind:
        case "none":
            return None, "__is_unconditional__", 0, None, None
        case "image":
            return "concat", dict(IDENTITY), c.channels, None, None
        case "semantic":
            params = {"n_stages": c.stages, "in_channels": c.classes, "out_channels": c.channels}
            return "concat", {"target": f"{ENCODERS}SpatialRescaler", "params": params}, c.channels, None, None
        case "embeddings":
            return "crossattn", dict(IDENTITY), 0, c.dim, None
        case "class" if c.output == "vector":
            if unet_of(config.diffusion).vector_projection == "mlp":
                raise UserError(
                    "a class vector that passes through an MLP cannot be exported: the original adds it as it is"
                )
            return "adm", dict(IDENTITY), 0, None, c.classes + (c.null == "learned")
        case "class":
            params = {"n_classes": c.classes + (c.null == "learned"), "embed_dim": c.dim}
            return "crossattn", {"target": f"{ENCODERS}ClassEmbedder", "params": params}, 0, c.dim, None
        case "text" | "layout":
            return "crossattn", _bert(c, report), 0, c.dim, None
        case "pretrained-text" if text is not None:
            return "crossattn", _clip(text, c), 0, text[1], None
        case "composite":
            return _composite(config, text)
    raise UserError(f"a conditioner of kind {c.kind} cannot be exported in the original layout; use --format diffusers")


def _bert(c: Any, report: Report) -> dict[str, Any]:
    if (c.heads, c.head_dim) != BERT_HEADS:
        raise UserError(f"{c.heads} heads of {c.head_dim} cannot be exported: the original's text encoder has 8 of 64")
    text = c.kind == "text"
    if text and c.tokenizer != "none":
        report(
            "the original tokenises by bert-base-uncased; give it token ids from this model's tokenizer.json instead"
        )
    params: dict[str, Any] = {"n_embed": c.dim, "n_layer": c.depth, "vocab_size": c.vocabulary}
    params["max_seq_len"] = c.max_tokens if text else c.length
    if not text:
        params["use_tokenizer"] = False
    return {"target": f"{ENCODERS}BERTEmbedder", "params": params}


def _clip(text: TextModel, config: PretrainedTextConfig) -> dict[str, Any]:
    length = {"max_length": config.max_tokens} if config.max_tokens != CLIP_TOKENS else {}
    if text[0] == "clip":
        node = {"target": f"{ENCODERS}FrozenCLIPEmbedder"}
        return {**node, "params": length} if length else node
    params = {"freeze": True, "layer": config.layer, **length}
    return {"target": f"{ENCODERS}FrozenOpenCLIPEmbedder", "params": params}


def _composite(config: ModelConfig, text: TextModel | None) -> Conditioned:
    """The original's combinations: channels with ready-made tokens or CLIP's, and its inpainting."""
    assert config.diffusion is not None
    assert config.diffusion.conditioner.kind == "composite"
    parts = list(config.diffusion.conditioner.parts.values())
    channels = sum(part.channels for part in parts if part.kind == "image")
    kinds = [part.kind for part in parts]
    if set(kinds) == {"image"}:
        latent_and_mask = [part.channels for part in parts if part.kind == "image"] == [
            config.autoencoder.raw_channels,
            1,
        ]
        return "concat", "__is_first_stage__" if latent_and_mask else dict(IDENTITY), channels, None, None
    if kinds == ["image", "embeddings"]:
        return "hybrid", dict(IDENTITY), channels, next(p.dim for p in parts if p.kind == "embeddings"), None
    if text is not None and kinds == ["image", "image", "pretrained-text"]:
        encoder = next(part for part in parts if part.kind == "pretrained-text")
        return "hybrid", _clip(text, encoder), channels, text[1], None
    raise UserError(f"the composite conditioner of {', '.join(kinds)} cannot be exported in the original layout")
