"""The original's YAML (nested `target` / `params`) -> sfumato's typed configurations. No target is ever imported.

A target is looked up in the literal tables below by its last name, so that forks which moved the classes still fit;
an unknown target or an unknown parameter of a known one is a UserError that names it: it could mean another network.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sfumato.autoencoder.model import AutoencoderConfig, KLConfig, VQConfig
from sfumato.denoiser.unet import UNetConfig
from sfumato.documents import parse_yaml, read_text
from sfumato.errors import UserError
from sfumato.foreign import short
from sfumato.interop.declared import SECTION, Declared, parse_declared

Params = Mapping[str, Any]

AUTOENCODERS = {"AutoencoderKL": "kl", "VQModel": "vq", "VQModelInterface": "vq"}
DIFFUSIONS = ("LatentDiffusion", "LatentInpaintDiffusion", "DDPM")
OTHER_MODELS = {
    "DiffusionEngine": "Stable Diffusion XL or another model of generative-models",
    "LatentDepth2ImageDiffusion": "Stable Diffusion 2's depth-to-image model",
    "LatentUpscaleDiffusion": "Stable Diffusion's upscaler",
    "ImageEmbeddingConditionedLatentDiffusion": "Stable unCLIP",
    "ControlLDM": "a ControlNet",
}
UNET = "UNetModel"
UNCONDITIONAL = "__is_unconditional__"
FIRST_STAGE = "__is_first_stage__"
BETA_SCHEDULES = {"linear": "scaled-linear", "sqrt_linear": "linear", "sqrt": "sqrt", "cosine": "cosine"}
PREDICTIONS = {"eps": "eps", "x0": "x0", "v": "v"}


@dataclass(frozen=True)
class Conditioning:
    """How a condition enters the U-Net, and its conditioner.

    mode: "none", "concat", "crossattn", "hybrid" (both) or "adm" (a vector). kind: the conditioner's, see CONDITIONERS.
    """

    mode: str = "none"
    kind: str = "none"
    params: Params = field(default_factory=dict)
    key: str = ""
    trainable: bool = False


@dataclass(frozen=True)
class Diffusion:
    """The second stage of an original checkpoint. scale_factor None: a buffer of the checkpoint (scale_by_std)."""

    unet: UNetConfig
    in_channels: int
    latent_channels: int
    token_dim: int | None
    classes: int | None
    latent_size: int
    conditioning: Conditioning
    schedule: dict[str, Any]
    prediction: str
    loss: str
    scale_factor: float | None
    elbo_weight: float
    averaged: bool


@dataclass(frozen=True)
class Original:
    """An original configuration: first stage and, if it has one, second. `resolution` is the nominal image size."""

    autoencoder: AutoencoderConfig
    resolution: int
    diffusion: Diffusion | None = None
    averaged_autoencoder: bool = False
    declared: Declared | None = None
    """sfumato's section, in files that it exported."""


def load_original_yaml(path: Path | str) -> Original:
    """Reads an original config.yaml. Raises UserError for anything that cannot be expressed exactly."""
    path = Path(path)
    if not os.path.lexists(path):
        raise UserError(f"config {str(path)!r} does not exist; give the checkpoint's original config.yaml")
    raw = parse_yaml(read_text(path, "config "), f"config {str(path)!r}")
    if raw is None:
        raise UserError(f"config {str(path)!r} is empty; give the checkpoint's original config.yaml")
    try:
        original = parse_original(raw)
        section = raw.get(SECTION) if isinstance(raw, dict) else None
        return replace(original, declared=parse_declared(section))
    except ValidationError as error:
        raise UserError(f"config {str(path)!r}: {first_problem(error)}") from None
    except UserError as error:
        raise UserError(f"config {str(path)!r}: {error}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, RecursionError) as error:
        raise UserError(f"config {str(path)!r} has a value of the wrong kind ({short(str(error))})") from None


def first_problem(error: ValidationError) -> str:
    """The first error of the validation, with the value's name if it has one."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: " * bool(where) + problem["msg"].removeprefix("Value error, ")


def parse_original(raw: Any) -> Original:
    """The `model:` part of an original configuration, as a mapping."""
    node = raw.get("model", raw) if isinstance(raw, dict) else raw
    name, params = _target(node, "model")
    if name in AUTOENCODERS:
        autoencoder, resolution = _autoencoder(name, params)
        averaged = bool(params.get("use_ema", False))
        return Original(autoencoder, resolution, averaged_autoencoder=averaged)
    if name in DIFFUSIONS:
        return _latent_diffusion(name, params)
    if name in OTHER_MODELS:
        raise UserError(f"this is the configuration of {OTHER_MODELS[name]}, which is not supported")
    known = ", ".join([*DIFFUSIONS, *AUTOENCODERS])
    raise UserError(f"model.target {short(name)} is not supported; known are {known}")


def _target(node: Any, where: str) -> tuple[str, Params]:
    """(last name of the target, parameters) of a target/params node."""
    if not isinstance(node, dict) or not isinstance(node.get("target"), str):
        raise UserError(f"{where} has no target; is this a configuration of the original latent-diffusion code?")
    params = node.get("params") or {}
    if not isinstance(params, dict):
        raise UserError(f"{where}.params must be a mapping, not {short(params)}")
    return node["target"].rsplit(".", 1)[-1], params


def _only(params: Params, known: set[str], where: str) -> None:
    unknown = sorted(map(str, set(params) - known))
    if unknown:
        raise UserError(f"{where} has the unknown parameter {short(unknown[0])}; it could mean another network")


def _need(params: Params, key: str, where: str) -> Any:
    if key not in params:
        raise UserError(f"{where} lacks the parameter {key!r}")
    return params[key]


def _refuse(params: Params, key: str, harmless: Any, where: str) -> None:
    """Refuses an option of the original without counterpart here, unless it has its harmless value."""
    value = params.get(key, harmless)
    if value != harmless and value is not None:
        raise UserError(f"{where}.{key} = {short(value)} has no counterpart here (only {harmless!r})")


# -- first stage ------------------------------------------------------------------------------------------------------

_AUTOENCODER_PARAMS = {
    "ddconfig", "embed_dim", "n_embed", "lossconfig", "monitor", "ckpt_path", "ignore_keys", "image_key",
    "colorize_nlabels", "batch_resize_range", "scheduler_config", "lr_g_factor", "remap", "sane_index_shape", "use_ema",
    "ema_decay", "learn_logvar",
}  # fmt: skip
_DDCONFIG_PARAMS = {
    "double_z", "z_channels", "resolution", "in_channels", "out_ch", "ch", "ch_mult", "num_res_blocks",
    "attn_resolutions", "dropout", "attn_type", "use_linear_attn", "resamp_with_conv", "tanh_out", "give_pre_end",
}  # fmt: skip
_ATTENTION = {"vanilla": "softmax", "vanilla-xformers": "softmax", "linear": "linear", "none": "none"}


def _autoencoder(name: str, params: Params) -> tuple[AutoencoderConfig, int]:
    where = f"{name}.params"
    _only(params, _AUTOENCODER_PARAMS, where)
    dd = _need(params, "ddconfig", where)
    where += ".ddconfig"
    if not isinstance(dd, dict):
        raise UserError(f"{where} must be a mapping")
    _only(dd, _DDCONFIG_PARAMS, where)
    for key, harmless in (("resamp_with_conv", True), ("tanh_out", False), ("give_pre_end", False)):
        _refuse(dd, key, harmless, where)
    kind = AUTOENCODERS[name]
    double = bool(dd.get("double_z", True))
    if double != (kind == "kl"):
        raise UserError(f"{where}.double_z is {double}, which does not fit {name}")
    if _need(dd, "in_channels", where) != _need(dd, "out_ch", where):
        raise UserError(
            f"{where}: in_channels {dd['in_channels']} and out_ch {dd['out_ch']} differ; they must be equal"
        )
    resolution = int(_need(dd, "resolution", where))
    multipliers = tuple(_need(dd, "ch_mult", where))
    attended = set(_need(dd, "attn_resolutions", where))
    attention = "linear" if dd.get("use_linear_attn") else dd.get("attn_type", "vanilla")
    if attention not in _ATTENTION:
        raise UserError(f"{where}.attn_type {attention!r} is not supported; known are {', '.join(_ATTENTION)}")
    vq = VQConfig(codes=int(_need(params, "n_embed", f"{name}.params"))) if kind == "vq" else None
    config = AutoencoderConfig.model_validate(
        {
            "image_channels": dd["in_channels"],
            "channels": _need(dd, "ch", where),
            "channel_multipliers": multipliers,
            "blocks_per_level": _need(dd, "num_res_blocks", where),
            "attention_levels": tuple(i for i in range(len(multipliers)) if resolution // 2**i in attended),
            "attention": _ATTENTION[attention],
            "latent_channels": _need(dd, "z_channels", where),
            "embed_channels": _need(params, "embed_dim", f"{name}.params"),
            "dropout": dd.get("dropout", 0.0),
            "bottleneck": vq or KLConfig(),
        }
    )
    return config, resolution


# -- second stage -----------------------------------------------------------------------------------------------------

_DIFFUSION_PARAMS = {
    "first_stage_config", "cond_stage_config", "num_timesteps_cond", "cond_stage_key", "cond_stage_trainable",
    "concat_mode", "cond_stage_forward", "conditioning_key", "scale_factor", "scale_by_std", "unet_config", "timesteps",
    "beta_schedule", "loss_type", "ckpt_path", "ignore_keys", "load_only_unet", "monitor", "use_ema", "first_stage_key",
    "image_size", "channels", "log_every_t", "clip_denoised", "linear_start", "linear_end", "cosine_s", "given_betas",
    "original_elbo_weight", "v_posterior", "l_simple_weight", "parameterization", "scheduler_config",
    "use_positional_encodings", "learn_logvar", "logvar_init", "ucg_training", "unet_trainable", "finetune_keys",
    "concat_keys", "masked_image_key", "force_null_conditioning", "make_it_fit", "reset_ema", "reset_num_ema_updates",
    "keep_finetune_dims", "c_concat_log_start", "c_concat_log_end",
}  # fmt: skip


def _latent_diffusion(name: str, params: Params) -> Original:
    where = f"{name}.params"
    _only(params, _DIFFUSION_PARAMS, where)
    for key, harmless in (
        ("given_betas", None),
        ("use_positional_encodings", False),
        ("num_timesteps_cond", 1),
        ("v_posterior", 0.0),
    ):
        _refuse(params, key, harmless, where)
    first, first_params = _target(_need(params, "first_stage_config", where), f"{where}.first_stage_config")
    if first not in AUTOENCODERS:
        raise UserError(
            f"{where}.first_stage_config.target {short(first)} is not supported; known are {', '.join(AUTOENCODERS)}"
        )
    autoencoder, resolution = _autoencoder(first, first_params)
    unet_name, unet_params = _target(_need(params, "unet_config", where), f"{where}.unet_config")
    if unet_name != UNET:
        raise UserError(f"{where}.unet_config.target {short(unet_name)} is not supported; known is {UNET}")
    unet = _unet(unet_params)
    conditioning = _conditioning(name, params, where)
    prediction = params.get("parameterization", "eps")
    if prediction not in PREDICTIONS:
        raise UserError(
            f"{where}.parameterization {short(prediction)} is not supported; known are {', '.join(PREDICTIONS)}"
        )
    size = params.get("image_size", unet_params.get("image_size", resolution // autoencoder.factor))
    diffusion = Diffusion(
        unet=unet,
        in_channels=int(_need(unet_params, "in_channels", "unet_config.params")),
        latent_channels=int(_need(unet_params, "out_channels", "unet_config.params")),
        token_dim=_token_dim(unet_params),
        classes=unet_params.get("num_classes"),
        latent_size=int(size if isinstance(size, int) else max(size)),
        conditioning=conditioning,
        schedule=_schedule(params, where),
        prediction=PREDICTIONS[prediction],
        loss=params.get("loss_type", "l2"),
        scale_factor=None if params.get("scale_by_std", False) else float(params.get("scale_factor", 1.0)),
        elbo_weight=float(params.get("original_elbo_weight", 0.0)),
        averaged=bool(params.get("use_ema", True)),
    )
    if diffusion.latent_channels != autoencoder.raw_channels:
        raise UserError(
            f"the U-Net outputs {diffusion.latent_channels} channels, "
            f"the first stage's latent has {autoencoder.raw_channels}"
        )
    return Original(autoencoder, resolution, diffusion)


def _schedule(params: Params, where: str) -> dict[str, Any]:
    kind = params.get("beta_schedule", "linear")
    if kind not in BETA_SCHEDULES:
        raise UserError(f"{where}.beta_schedule {short(kind)} is not supported; known are {', '.join(BETA_SCHEDULES)}")
    steps = int(params.get("timesteps", 1000))
    if kind == "cosine":
        return {"kind": "cosine", "steps": steps, "offset": float(params.get("cosine_s", 8e-3))}
    start, end = float(params.get("linear_start", 1e-4)), float(params.get("linear_end", 2e-2))
    return {"kind": BETA_SCHEDULES[kind], "steps": steps, "start": start, "end": end}


_UNET_PARAMS = {
    "image_size", "in_channels", "model_channels", "out_channels", "num_res_blocks", "attention_resolutions", "dropout",
    "channel_mult", "conv_resample", "dims", "num_classes", "use_checkpoint", "use_fp16", "use_bf16", "num_heads",
    "num_head_channels", "num_heads_upsample", "use_scale_shift_norm", "resblock_updown", "use_new_attention_order",
    "use_spatial_transformer", "transformer_depth", "context_dim", "n_embed", "legacy", "disable_self_attentions",
    "num_attention_blocks", "disable_middle_self_attn", "use_linear_in_transformer", "adm_in_channels",
}  # fmt: skip


def _one(value: Any, name: str) -> Any:
    """A number that later forks write as a list with one entry per level."""
    if isinstance(value, list | tuple):
        if len(set(value)) != 1:
            raise UserError(f"UNetModel.params.{name} {list(value)} differs between levels; that is not supported")
        return value[0]
    return value


def _token_dim(params: Params) -> int | None:
    if not params.get("use_spatial_transformer", False):
        return None
    return int(_one(_need(params, "context_dim", "UNetModel.params"), "context_dim"))


def _unet(params: Params) -> UNetConfig:
    where = "UNetModel.params"
    _only(params, _UNET_PARAMS, where)
    for key, harmless in (("dims", 2), ("n_embed", None), ("disable_middle_self_attn", False)):
        _refuse(params, key, harmless, where)
    for key in ("disable_self_attentions", "num_attention_blocks"):
        _refuse(params, key, None, where)
    heads, head_channels = params.get("num_heads", -1), params.get("num_head_channels", -1)
    upsample = params.get("num_heads_upsample", -1)
    if upsample not in (-1, heads):
        raise UserError(f"{where}.num_heads_upsample {upsample} differs from num_heads {heads}; that is not supported")
    if heads == head_channels == -1:
        raise UserError(f"{where} has neither num_heads nor num_head_channels")
    multipliers = tuple(params.get("channel_mult", (1, 2, 4, 8)))
    attended = set(_need(params, "attention_resolutions", where))  # factors that are never reached do nothing
    conv = params.get("conv_resample", True)
    residual = params.get("resblock_updown", False)
    return UNetConfig(
        channels=_need(params, "model_channels", where),
        channel_multipliers=multipliers,
        blocks_per_level=_one(_need(params, "num_res_blocks", where), "num_res_blocks"),
        attention_factors=tuple(2**i for i in range(len(multipliers)) if 2**i in attended),
        heads=heads if head_channels == -1 else None,
        head_channels=None if head_channels == -1 else head_channels,
        transformer_depth=_one(params.get("transformer_depth", 1), "transformer_depth"),
        resample="residual" if residual else "conv" if conv else "pool",
        scale_shift_norm=bool(params.get("use_scale_shift_norm", False)),
        attention_order="qkv_first" if params.get("use_new_attention_order", False) else "head_first",
        linear_projections=bool(params.get("use_linear_in_transformer", False)),
        vector_projection="mlp" if params.get("num_classes") == "sequential" else "none",
        dropout=params.get("dropout", 0.0),
    )


# -- conditioning -----------------------------------------------------------------------------------------------------

CONDITIONERS = {
    "ClassEmbedder": "class",
    "BERTEmbedder": "bert",
    "TransformerEmbedder": "transformer",
    "SpatialRescaler": "semantic",
    "Identity": "identity",
    "FrozenCLIPEmbedder": "clip",
    "FrozenOpenCLIPEmbedder": "open-clip",
}
_CONDITIONER_PARAMS = {
    "class": {"embed_dim", "n_classes", "key"},
    "bert": {"n_embed", "n_layer", "vocab_size", "max_seq_len", "device", "use_tokenizer", "embedding_dropout"},
    "transformer": {"n_embed", "n_layer", "vocab_size", "max_seq_len", "device"},
    "semantic": {"n_stages", "method", "multiplier", "in_channels", "out_channels", "bias"},
    "identity": set(),
    "clip": {"version", "device", "max_length", "freeze", "layer", "layer_idx"},
    "open-clip": {"arch", "version", "device", "max_length", "freeze", "layer"},
}


def _conditioning(name: str, params: Params, where: str) -> Conditioning:
    """The rules of the original: an explicit key, else concat_mode decides; unconditional overrides both."""
    node = params.get("cond_stage_config", UNCONDITIONAL)
    mode = params.get("conditioning_key")
    if mode is None:
        mode = "concat" if params.get("concat_mode", True) else "crossattn"
    if name == "LatentInpaintDiffusion":
        mode = "hybrid"
    if node == UNCONDITIONAL and mode != "hybrid":
        return Conditioning()
    if mode not in ("concat", "crossattn", "hybrid", "adm"):
        raise UserError(
            f"{where}.conditioning_key {short(mode)} is not supported; known are concat, crossattn, hybrid, adm"
        )
    key = str(params.get("cond_stage_key", "image"))
    trainable = bool(params.get("cond_stage_trainable", False))
    if node == FIRST_STAGE:
        return Conditioning(mode, "first-stage", {}, key, trainable)
    target, target_params = _target(node, f"{where}.cond_stage_config")
    if target not in CONDITIONERS:
        known = ", ".join([*CONDITIONERS, FIRST_STAGE, UNCONDITIONAL])
        raise UserError(f"{where}.cond_stage_config.target {short(target)} is not supported; known are {known}")
    kind = CONDITIONERS[target]
    if kind != "identity":  # whose parameters the original ignores too
        _only(target_params, _CONDITIONER_PARAMS[kind], f"{target}.params")
    return Conditioning(mode, kind, target_params, key, trainable)
