"""All denoisers to choose from."""

from sfumato.conditioning.condition import ConditionSpec
from sfumato.denoiser.unet import UNet, UNetConfig

DenoiserConfig = UNetConfig
"""The union of the denoisers' configurations, told apart by `kind`."""


def build_denoiser(config: DenoiserConfig, latent_channels: int, spec: ConditionSpec) -> UNet:
    """The network for latents of the given channels that takes the given fields of Condition."""
    return UNet(config, latent_channels, spec)
