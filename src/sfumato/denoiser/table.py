"""All available denoisers."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from sfumato.conditioning.condition import ConditionSpec
from sfumato.denoiser.convnext import ConvNeXt, ConvNeXtConfig
from sfumato.denoiser.dit import SIT_STEPS, DiT, DiTConfig
from sfumato.denoiser.network import Denoiser
from sfumato.denoiser.unet import UNet, UNetConfig


def _unet_by_default(given: Any) -> Any:
    """A configuration without a kind is a U-Net's."""
    return {"kind": "unet", **given} if isinstance(given, dict) else given


DenoiserConfig = Annotated[
    UNetConfig | ConvNeXtConfig | DiTConfig, Field(discriminator="kind"), BeforeValidator(_unet_by_default)
]
"""The union of the denoisers' configurations, discriminated by `kind`."""


def build_denoiser(config: DenoiserConfig, latent_channels: int, spec: ConditionSpec) -> Denoiser:
    """The network for latents with `latent_channels` channels, conditioned on the fields of `spec`."""
    if isinstance(config, ConvNeXtConfig):
        return ConvNeXt(config, latent_channels, spec)
    if isinstance(config, DiTConfig):
        return DiT(config, latent_channels, spec)
    return UNet(config, latent_channels, spec)


def check_time(config: DenoiserConfig, steps: int) -> None:
    """Raises ValueError where a denoiser cannot read the network times of a schedule of this many steps."""
    if isinstance(config, DiTConfig) and config.time == "clean-share" and steps != SIT_STEPS:
        raise ValueError(
            f"denoiser.time is clean-share, which reads the times of {SIT_STEPS} steps, but schedule.steps is {steps}: "
            f"set schedule.steps to {SIT_STEPS}"
        )
