"""diffusers' config.json files <-> our typed configurations, checked option by option: any difference is an error."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sfumato.autoencoder.model import AutoencoderConfig, KLConfig, VQConfig
from sfumato.denoiser.unet import UNetConfig
from sfumato.diffusion.schedule import CosineConfig, LinearConfig, ScaledLinearConfig, ScheduleConfig
from sfumato.errors import UserError
from sfumato.foreign import short
from sfumato.interop.expressible import autoencoder_groups

Config = Mapping[str, Any]
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
AUTOENCODERS = ("AutoencoderKL", "VQModel")
DEFAULT_GROUPS = 32
UNETS = ("UNet2DModel", "UNet2DConditionModel")
TRANSFORMERS = ("DiTTransformer2DModel", "Transformer2DModel")


MAX_LEVELS = 10
LARGEST = 1_000_000
"""Upper bound of every width, count and size of a configuration."""


def whole(value: Any, key: str, least: int = 1) -> int:
    """A whole number of a configuration, within bounds; raises UserError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
        raise UserError(f"{key} is {short(value)}: it must be a whole number from {least} to {LARGEST}")
    return value


def sides(value: Any, key: str) -> tuple[int, int]:
    """(H, W) from one number or two."""
    pair = value if isinstance(value, list | tuple) else [value, value]
    if len(pair) != 2:
        raise UserError(f"{key} is {short(value)}: it must be one whole number or two")
    return whole(pair[0], key), whole(pair[1], key)


def demand(config: Config, name: str, **required: Any) -> None:
    """Raises UserError for an option that has another value than the required one, or than one of several."""
    for key, value in required.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if key in config and config[key] not in allowed:
            raise UserError(f"{name}: {key} = {short(config[key])} has no counterpart here (only {allowed[0]!r})")


def _blocks(config: Config, name: str, plain: str, attending: str, side: str) -> list[bool]:
    """Which blocks of one side have attention, from their class names."""
    types = config[f"{side}_block_types"]
    if not isinstance(types, list | tuple) or not 1 <= len(types) <= MAX_LEVELS:
        raise UserError(f"{name}: {side}_block_types must be a list of 1 to {MAX_LEVELS} names, not {short(types)}")
    for kind in types:
        if kind not in (plain, attending):
            raise UserError(
                f"{name}: the block {str(kind)[:80]} has no counterpart here (only {plain} and {attending})"
            )
    return [kind == attending for kind in types]


def _multipliers(config: Config, name: str) -> tuple[int, tuple[int, ...]]:
    given = config["block_out_channels"]
    if not isinstance(given, list | tuple) or not 1 <= len(given) <= MAX_LEVELS:
        raise UserError(f"{name}: block_out_channels must be a list of 1 to {MAX_LEVELS} widths, not {short(given)}")
    widths = [whole(width, f"{name}: block_out_channels") for width in given]
    first = widths[0]
    if any(width % first for width in widths):
        raise UserError(f"{name}: block_out_channels {widths} are not multiples of the first, which is not supported")
    return first, tuple(width // first for width in widths)


def _groups(config: Config, name: str, multipliers: tuple[int, ...], channels: int) -> int:
    """The groups of every norm, which divide every width."""
    groups = int(config.get("norm_num_groups", DEFAULT_GROUPS) or DEFAULT_GROUPS)
    widths = [channels * m for m in multipliers]
    if groups < 1 or any(width % groups for width in widths):
        raise UserError(f"{name}: norm_num_groups {groups} does not divide the block_out_channels {widths}")
    return groups


# -- autoencoder ------------------------------------------------------------------------------------------------------


def read_autoencoder(config: Config) -> AutoencoderConfig:
    """The configuration of AutoencoderKL or VQModel; raises UserError for anything that cannot be expressed."""
    name = str(config.get("_class_name", "AutoencoderKL"))
    if name in (*UNETS, *TRANSFORMERS):
        raise UserError(f"{name} is a network without its autoencoder: give the folder of the whole pipeline")
    if name not in AUTOENCODERS:
        raise UserError(f"the autoencoder {name} is not supported; known are {', '.join(AUTOENCODERS)}")
    channels, multipliers = _multipliers(config, name)
    demand(config, name, act_fn=("silu", "swish"), use_quant_conv=True, use_post_quant_conv=True)
    demand(config, name, mid_block_add_attention=True, norm_type=("group", None), lookup_from_codebook=False)
    demand(config, name, out_channels=config.get("in_channels", 3))
    down = _blocks(config, name, "DownEncoderBlock2D", "AttnDownEncoderBlock2D", "down")
    up = _blocks(config, name, "UpDecoderBlock2D", "AttnUpDecoderBlock2D", "up")
    if down != up[::-1]:
        raise UserError(f"{name}: encoder and decoder attend at different levels, which is not supported")
    latent = whole(config.get("latent_channels", 4), f"{name}: latent_channels")
    vq = (
        VQConfig(codes=whole(config.get("num_vq_embeddings", 256), f"{name}: num_vq_embeddings"))
        if name == "VQModel"
        else KLConfig()
    )
    return AutoencoderConfig.model_validate(
        {
            "image_channels": config.get("in_channels", 3),
            "channels": channels,
            "channel_multipliers": multipliers,
            "blocks_per_level": config.get("layers_per_block", 1),
            "attention_levels": tuple(level for level, attends in enumerate(down) if attends),
            "latent_channels": latent,
            "embed_channels": config.get("vq_embed_dim") or latent,
            "norm_groups": _groups(config, name, multipliers, channels),
            "bottleneck": vq,
        }
    )


def write_autoencoder(config: AutoencoderConfig, scale: float, size: int) -> dict[str, Any]:
    """config.json of AutoencoderKL or VQModel; raises UserError for anything that diffusers cannot express."""
    vq = config.bottleneck if isinstance(config.bottleneck, VQConfig) else None
    name = "VQModel" if vq else "AutoencoderKL"
    if config.attention != "softmax":
        raise UserError(
            f"a first stage with attention {config.attention} cannot be exported: diffusers' {name} has softmax"
        )
    if vq is None and config.raw_channels != config.latent_channels:
        raise UserError(
            f"embed_channels {config.raw_channels} unlike latent_channels {config.latent_channels} cannot be exported"
        )
    if vq is not None and vq.normalise:
        raise UserError("a codebook on the unit sphere (normalise) cannot be exported: diffusers compares by distance")
    attends = [level in config.attention_levels for level in range(len(config.channel_multipliers))]
    out: dict[str, Any] = {
        "_class_name": name,
        "act_fn": "silu",
        "block_out_channels": [config.channels * m for m in config.channel_multipliers],
        "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends],
        "in_channels": config.image_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.blocks_per_level,
        "norm_num_groups": autoencoder_groups(config),
        "out_channels": config.image_channels,
        "sample_size": size,
        "scaling_factor": scale,
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)],
    }
    if vq is not None:
        out |= {"num_vq_embeddings": vq.codes, "vq_embed_dim": config.raw_channels}
    return out


# -- U-Net ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadUNet:
    """A U-Net of diffusers: its configuration here, its channels, the tokens' width, the classes of its own table."""

    config: UNetConfig
    in_channels: int
    out_channels: int
    token_dim: int | None
    classes: int | None
    size: tuple[int, int] | None


def read_unet(config: Config) -> ReadUNet:
    """The configuration of UNet2DModel or UNet2DConditionModel; raises UserError for anything that cannot be
    expressed."""
    name = str(config.get("_class_name", "UNet2DConditionModel"))
    if name not in UNETS:
        raise UserError(f"the network {name} is not supported; known are {', '.join(UNETS)}")
    tokens = name == "UNet2DConditionModel"
    _demand_numerics(config, name)
    channels, multipliers = _multipliers(config, name)
    resample = "conv"
    if tokens:
        down = _blocks(config, name, "DownBlock2D", "CrossAttnDownBlock2D", "down")
        up = _blocks(config, name, "UpBlock2D", "CrossAttnUpBlock2D", "up")
    else:
        residual = config.get("downsample_type", "conv") == "resnet"
        plain = "ResnetDownsampleBlock2D" if residual else "DownBlock2D"
        down = _blocks(config, name, plain, "AttnDownBlock2D", "down")
        up = _blocks(config, name, "ResnetUpsampleBlock2D" if residual else "UpBlock2D", "AttnUpBlock2D", "up")
        resample = "residual" if residual else "conv"
    if down != up[::-1]:
        raise UserError(f"{name}: the two sides attend at different levels, which is not supported")
    size = config.get("sample_size")
    shift = config.get("resnet_time_scale_shift", "default")
    unet = UNetConfig.model_validate(
        {
            "channels": channels,
            "channel_multipliers": multipliers,
            "blocks_per_level": _same(config.get("layers_per_block", 2), name, "layers_per_block"),
            "attention_factors": tuple(2**level for level, attends in enumerate(down) if attends),
            **_read_heads(config, name, tokens, [channels * m for m in multipliers], down),
            "transformer_depth": _same(
                config.get("transformer_layers_per_block", 1), name, "transformer_layers_per_block"
            ),
            "resample": resample,
            "scale_shift_norm": shift == "scale_shift",
            "linear_projections": bool(config.get("use_linear_projection", False)),
            "vector_projection": "none",
            "dropout": config.get("dropout") or 0.0,
            "norm_groups": _groups(config, name, multipliers, channels),
        }
    )
    width = _same(config.get("cross_attention_dim", 1280), name, "cross_attention_dim") if tokens else None
    classes = config.get("num_class_embeds")
    return ReadUNet(
        unet,
        whole(config.get("in_channels", 3), f"{name}: in_channels"),
        whole(config.get("out_channels", 3), f"{name}: out_channels"),
        width,
        None if classes is None else whole(classes, f"{name}: num_class_embeds"),
        None if size is None else sides(size, f"{name}: sample_size"),
    )


def _demand_numerics(config: Config, name: str) -> None:
    demand(config, name, act_fn=("silu", "swish"), norm_eps=1e-5, center_input_sample=False)
    demand(config, name, time_embedding_type="positional", flip_sin_to_cos=True, freq_shift=0, downsample_padding=1)
    demand(config, name, mid_block_scale_factor=1, add_attention=True, only_cross_attention=False)
    demand(config, name, dual_cross_attention=False, conv_in_kernel=3, conv_out_kernel=3, attention_type="default")
    demand(config, name, class_embed_type=None, addition_embed_type=None, encoder_hid_dim=None, time_cond_proj_dim=None)
    demand(config, name, time_embedding_act_fn=None, timestep_post_act=None, class_embeddings_concat=False)
    demand(config, name, resnet_time_scale_shift=("default", "scale_shift"), cross_attention_norm=None)
    demand(
        config, name, mid_block_type=("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"), mid_block_only_cross_attention=None
    )
    demand(
        config, name, resnet_out_scale_factor=1.0, reverse_transformer_layers_per_block=None, time_embedding_dim=None
    )
    if name == "UNet2DModel":
        demand(config, name, upsample_type=config.get("downsample_type", "conv"))
        plain = config.get("resnet_time_scale_shift", "default") == "default"
        groups = config.get("norm_num_groups", DEFAULT_GROUPS)
        if config.get("attn_norm_num_groups") not in ((None, groups) if plain else (groups,)):
            raise UserError(
                f"{name}: attn_norm_num_groups must be {groups} here, as norm_num_groups: the middle attention has a "
                "norm of as many groups as the others"
            )


def _same(value: Any, name: str, key: str) -> int:
    """A single number, where later releases allow one per level."""
    if isinstance(value, list | tuple):
        if not value or any(item != value[0] for item in value):
            raise UserError(f"{name}: {key} {short(value)} differs between levels, which is not supported")
        value = value[0]
    return whole(value, f"{name}: {key}")


def _read_heads(config: Config, name: str, tokens: bool, widths: list[int], attends: list[bool]) -> dict[str, Any]:
    """`attention_head_dim` is the width of a head in UNet2DModel, and the number of heads in UNet2DConditionModel."""
    given = config.get("attention_head_dim", 8)
    if not tokens:
        width = f"{name}: attention_head_dim"
        return {"head_channels": whole(given, width)} if given is not None else {"heads": 1}
    given = config.get("num_attention_heads") or given
    heads = [given] * len(widths) if isinstance(given, int) else list(given)
    heads = [whole(count, f"{name}: attention heads") for count in heads]
    if len(heads) != len(widths):
        raise UserError(f"{name}: {len(heads)} numbers of heads do not match {len(widths)} levels")
    used = [(w, h) for w, h, a in zip(widths, heads, attends, strict=True) if a] + [(widths[-1], heads[-1])]
    if len({h for _, h in used}) == 1:
        return {"heads": used[0][1]}
    sizes = {w / h for w, h in used}
    if len(sizes) == 1:
        return {"head_channels": int(sizes.pop())}
    raise UserError(
        f"{name}: heads {heads} for widths {widths} are neither one number nor one width, which is not supported"
    )


def write_unet(
    config: UNetConfig, latent: int, extra: int, token_dim: int | None, classes: int | None, size: tuple[int, int]
) -> dict[str, Any]:
    """config.json of UNet2DModel (no tokens) or UNet2DConditionModel; raises UserError for anything that cannot be
    expressed."""
    levels = len(config.channel_multipliers)
    widths = [config.channels * m for m in config.channel_multipliers]
    attends = [2**level in config.attention_factors for level in range(levels)]
    if config.resample == "pool":
        raise UserError("a U-Net that pools (resample: pool) cannot be exported to diffusers")
    out: dict[str, Any] = {
        "act_fn": "silu",
        "block_out_channels": widths,
        "dropout": config.dropout,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": latent + extra,
        "layers_per_block": config.blocks_per_level,
        "norm_eps": 1e-5,
        "norm_num_groups": config.norm_groups,
        "out_channels": latent,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift_norm else "default",
        "sample_size": size[0] if size[0] == size[1] else list(size),
    }
    if classes is not None:
        out["num_class_embeds"] = classes
    if token_dim is None:
        return out | _write_plain(config, attends)
    if config.resample != "conv":
        raise UserError("a U-Net with tokens and resample: residual cannot be exported to diffusers")
    heads: int | list[int] = config.heads or [width // (config.head_channels or width) for width in widths]
    out |= {
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": heads,
        "cross_attention_dim": token_dim,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "transformer_layers_per_block": config.transformer_depth,
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "use_linear_projection": config.linear_projections,
    }
    return out


def _write_plain(config: UNetConfig, attends: list[bool]) -> dict[str, Any]:
    residual = config.resample == "residual"
    head_channels = config.head_channels
    if head_channels is None:
        widths = config.attended_widths()
        assert config.heads is not None
        if len(widths) > 1 and config.heads > 1:
            raise UserError(
                f"{config.heads} heads at widths {sorted(widths)} cannot be exported: "
                "UNet2DModel has heads of one width"
            )
        head_channels = None if config.heads == 1 else widths.pop() // config.heads
    down, up = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if residual else ("DownBlock2D", "UpBlock2D")
    return {
        "_class_name": "UNet2DModel",
        "attention_head_dim": head_channels,
        "attn_norm_num_groups": config.norm_groups,
        "down_block_types": ["AttnDownBlock2D" if a else down for a in attends],
        "downsample_type": "resnet" if residual else "conv",
        "up_block_types": ["AttnUpBlock2D" if a else up for a in reversed(attends)],
        "upsample_type": "resnet" if residual else "conv",
    }


# -- scheduler --------------------------------------------------------------------------------------------------------


def read_scheduler(config: Config) -> tuple[dict[str, Any], str]:
    """(our schedule as plain data, prediction) of scheduler_config.json; raises UserError for anything unknown."""
    name = str(config.get("_class_name", "scheduler"))
    if name.startswith("FlowMatch"):
        raise UserError(f"the scheduler {short(name)} is not supported: known are those of a table of betas, as DDIM's")
    steps = whole(config.get("num_train_timesteps", 1000), f"{name}: num_train_timesteps", 2)
    kind = config.get("beta_schedule", "linear")
    zero = {"zero_terminal_snr": bool(config.get("rescale_betas_zero_snr", False))}
    if config.get("trained_betas") is not None:
        raise UserError(f"{name}: trained_betas has no counterpart here")
    prediction = config.get("prediction_type", "epsilon")
    if not isinstance(prediction, str) or prediction not in PREDICTIONS:
        raise UserError(
            f"{name}: prediction_type {short(prediction)} is not supported; known are {', '.join(PREDICTIONS)}"
        )
    bounds = {"start": float(config.get("beta_start", 1e-4)), "end": float(config.get("beta_end", 0.02))}
    if kind == "scaled_linear":
        return {"kind": "scaled-linear", "steps": steps, **bounds, **zero}, PREDICTIONS[prediction]
    if kind == "linear":
        return {"kind": "linear", "steps": steps, **bounds, **zero}, PREDICTIONS[prediction]
    if kind == "squaredcos_cap_v2":
        return {"kind": "cosine", "steps": steps, **zero}, PREDICTIONS[prediction]
    raise UserError(
        f"{name}: beta_schedule {short(kind)} is not supported; known are scaled_linear, linear, squaredcos_cap_v2"
    )


def write_scheduler(schedule: ScheduleConfig, prediction: str) -> dict[str, Any]:
    """scheduler_config.json of a DDIMScheduler that ends as the original's; raises UserError for other schedules."""
    names = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    if prediction not in names:
        raise UserError(
            f"a model that predicts {prediction} cannot be exported: diffusers' schedulers have {', '.join(names)}"
        )
    out: dict[str, Any] = {
        "_class_name": "DDIMScheduler",
        "clip_sample": False,
        "prediction_type": names[prediction],
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    if isinstance(schedule, ScaledLinearConfig | LinearConfig):
        name = "scaled_linear" if isinstance(schedule, ScaledLinearConfig) else "linear"
        out |= {"beta_schedule": name, "beta_start": schedule.start, "beta_end": schedule.end}
    elif isinstance(schedule, CosineConfig) and (schedule.offset, schedule.max_beta) == (0.008, 0.999):
        out |= {"beta_schedule": "squaredcos_cap_v2"}
    elif isinstance(schedule, CosineConfig):
        raise UserError(
            f"a cosine schedule with offset {schedule.offset:g} and max_beta {schedule.max_beta:g} cannot be exported: "
            "diffusers' has 0.008 and 0.999; export with --format original, whose checkpoints contain its table"
        )
    else:
        original = "; export with --format original, whose checkpoints contain its table"
        instead = "" if schedule.kind == "flow" else original
        raise UserError(
            f"the {schedule.kind} schedule cannot be exported: diffusers' schedulers do not have it{instead}"
        )
    zero = schedule.zero_terminal_snr
    if zero:  # sampling must start where the signal is 0 (Lin et al. 2024, section 3.3)
        out["timestep_spacing"] = "trailing"
    return out | {"num_train_timesteps": schedule.steps, "rescale_betas_zero_snr": zero}
