"""All available denoisers."""

from sfumato.conditioning.condition import ConditionSpec
from sfumato.denoiser.unet import UNet, UNetConfig

DenoiserConfig = UNetConfig
"""The union of the denoisers' configurations, discriminated by `kind`."""


def build_denoiser(config: DenoiserConfig, latent_channels: int, spec: ConditionSpec) -> UNet:
    """The network for latents with `latent_channels` channels, conditioned on the fields of `spec`."""
    return UNet(config, latent_channels, spec)
