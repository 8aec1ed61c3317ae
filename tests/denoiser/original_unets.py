"""The original U-Net options in this project's words, for tests against recorded tensors."""

from typing import Any

from sfumato.conditioning.condition import ConditionSpec
from sfumato.denoiser.unet import UNetConfig


def from_original(config: dict[str, Any]) -> tuple[UNetConfig, int, ConditionSpec]:
    """(config, latent channels, spec) of an original configuration's unet_config."""
    p = config["model"]["params"]["unet_config"]["params"]
    unet = UNetConfig(
        channels=p["model_channels"],
        channel_multipliers=tuple(p["channel_mult"]),
        blocks_per_level=p["num_res_blocks"],
        attention_factors=tuple(p["attention_resolutions"]),
        heads=p.get("num_heads"),
        head_channels=p.get("num_head_channels"),
        transformer_depth=p.get("transformer_depth", 1),
        resample="residual" if p.get("resblock_updown") else "conv",
        scale_shift_norm=p.get("use_scale_shift_norm", False),
    )
    latent = p["out_channels"]
    return unet, latent, ConditionSpec(token_dim=p.get("context_dim"), spatial_channels=p["in_channels"] - latent)
