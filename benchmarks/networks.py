"""The same network twice: ours, and diffusers' with the same numbers."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig
from sfumato.conditioning.condition import ConditionSpec
from sfumato.denoiser.unet import UNet, UNetConfig
from sfumato.interop.diffusers_config import write_autoencoder, write_unet
from sfumato.interop.diffusers_keys import autoencoder_entries, unet_entries

W1 = UNetConfig(channels=128, channel_multipliers=(1, 2, 3), attention_factors=(2, 4))
"""Unconditional, 43 M parameters."""
W2 = UNetConfig(channels=160, channel_multipliers=(1, 2, 4), attention_factors=(1, 2, 4))
"""Text-conditional, 160 M parameters, 768 wide tokens."""
W2_REAL = UNetConfig(channels=320, channel_multipliers=(1, 2, 4, 4), attention_factors=(1, 2, 4), heads=8)
"""Stable Diffusion 1's, 860 M parameters."""
DEMO = UNetConfig(
    channels=64,
    channel_multipliers=(1, 2),
    blocks_per_level=1,
    attention_factors=(1, 2),
    head_channels=32,
    scale_shift_norm=True,
    norm_groups=8,
)
"""The demo's (`zoo:toy/small-text`), 4 M parameters, with 24 tokens 64 wide."""
TOKEN_DIM = 768
CPU = torch.device("cpu")

M = TypeVar("M", bound=nn.Module)


def unet_pair(
    config: UNetConfig, token_dim: int | None, size: int, device: torch.device = CPU
) -> tuple[UNet, nn.Module]:
    """Ours and diffusers' U-Net for latents (B, 4, size, size), random weights without zeros, made on the device."""
    import diffusers

    options = write_unet(config, 4, 0, token_dim, None, (size, size))
    with device:
        ours = filled(UNet(config, 4, ConditionSpec(token_dim=token_dim)))
        theirs = getattr(diffusers, options.pop("_class_name"))(**options)
    state = ours.state_dict()
    entries = unet_entries(state, config, token_dim is not None)
    return ours, _loaded(theirs, state, entries)


def autoencoder_pair(config: AutoencoderConfig, size: int, device: torch.device = CPU) -> tuple[Autoencoder, nn.Module]:
    """Ours and diffusers' first stage for images (B, 3, size, size)."""
    import diffusers

    options = write_autoencoder(config, 1.0, size)
    with device:
        ours = filled(Autoencoder(config))
        theirs = getattr(diffusers, options.pop("_class_name"))(**options)
    state = ours.state_dict()
    return ours, _loaded(theirs, state, autoencoder_entries(state, len(config.channel_multipliers)))


def filled(module: M) -> M:
    """Zero-initialised layers get numbers: a network that ends in zeros compares nothing."""
    device = next(module.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator, device=device) / fan_in**0.5)
    return module.eval()


def _loaded(theirs: nn.Module, state: dict[str, Tensor], entries: dict[str, Any]) -> nn.Module:
    tensors: dict[str, Tensor] = {}
    for key, entry in entries.items():
        tensors |= entry.to_theirs(state[key])
    theirs.load_state_dict(tensors)
    return theirs.eval()
