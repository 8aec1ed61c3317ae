"""The formulas against torch's own count of what runs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sfumato import flops
from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig, VQConfig
from sfumato.autoencoder.tiny import TinyDecoder, TinyDecoderConfig
from sfumato.baselines.network import CodeTransformer, CodeTransformerConfig
from sfumato.conditioning.condition import Condition, ConditionSpec
from sfumato.denoiser.unet import UNet, UNetConfig

TOLERANCE = 0.02


def counted(make: Callable[[], nn.Module], call: Callable[[Any], Any], device: str = "meta") -> int:
    """torch's count of operations: attention is two matrix products on the meta device, and nothing on the CPU."""
    with torch.device(device), torch.no_grad(), FlopCounterMode(display=False) as counter:
        call(make().eval())
    return counter.get_total_flops()


AUTOENCODERS = {
    "kl-f4": AutoencoderConfig(channels=32, channel_multipliers=(1, 2, 4), blocks_per_level=1, latent_channels=3),
    "kl-f8-attending": AutoencoderConfig(
        channels=32, channel_multipliers=(1, 2, 2, 4), attention_levels=(2, 3), latent_channels=4, embed_channels=6
    ),
    "kl-linear-attention": AutoencoderConfig(
        channels=32, channel_multipliers=(1, 2), attention="linear", attention_levels=(1,)
    ),
    "vq-f4-no-attention": AutoencoderConfig(
        channels=32,
        channel_multipliers=(1, 2, 3),
        attention="none",
        latent_channels=8,
        embed_channels=3,
        bottleneck=VQConfig(codes=1024),
    ),
}


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoder(name: str) -> None:
    config, size = AUTOENCODERS[name], (48, 32)
    device = "cpu" if isinstance(config.bottleneck, VQConfig) else "meta"  # the search for codes has no meta device
    image = torch.zeros(1, 3, *size, device=device)
    latent = torch.zeros(1, config.raw_channels, *[side // config.factor for side in size], device=device)
    expected = counted(lambda: Autoencoder(config), lambda net: net.encode(image), device)
    assert flops.encode(config, size) == pytest.approx(expected, rel=TOLERANCE)
    expected = counted(lambda: Autoencoder(config), lambda net: net.decode(latent), device)
    assert flops.decode(config, size) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_tiny_decoder(factor: int) -> None:
    config = TinyDecoderConfig(latent_channels=5, factor=factor, channels=24, blocks=2)
    latent = torch.zeros(1, 5, 6, 4, device="meta")
    expected = counted(lambda: TinyDecoder(config), lambda net: net(latent))
    assert flops.decode_tiny(config, (6 * factor, 4 * factor)) == pytest.approx(expected, rel=TOLERANCE)


UNETS = {
    "plain": (UNetConfig(channels=32, channel_multipliers=(1, 2, 4)), ConditionSpec()),
    "tokens": (
        UNetConfig(channels=64, channel_multipliers=(1, 2), attention_factors=(2,), transformer_depth=2),
        ConditionSpec(token_dim=48),
    ),
    "vector": (
        UNetConfig(channels=32, channel_multipliers=(1, 2), resample="residual", scale_shift_norm=True),
        ConditionSpec(vector_dim=20),
    ),
    "linear-projections": (
        UNetConfig(channels=32, channel_multipliers=(1, 1, 2), heads=4, linear_projections=True, resample="pool"),
        ConditionSpec(token_dim=16, spatial_channels=5),
    ),
}


@pytest.mark.parametrize("name", UNETS)
def test_denoiser(name: str) -> None:
    config, spec = UNETS[name]
    latent, tokens = (24, 16), 11
    condition = {
        "vector": None if spec.vector_dim is None else torch.empty(1, spec.vector_dim, device="meta"),
        "tokens": None if spec.token_dim is None else torch.empty(1, tokens, spec.token_dim, device="meta"),
        "spatial": torch.empty(1, spec.spatial_channels, *latent, device="meta") if spec.spatial_channels else None,
    }
    x, t = torch.empty(1, 4, *latent, device="meta"), torch.zeros(1, device="meta")
    expected = counted(lambda: UNet(config, 4, spec), lambda net: net(x, t, Condition(**condition)))
    assert flops.denoise(config, 4, spec, latent, tokens) == pytest.approx(expected, rel=TOLERANCE)


def test_transformer_over_codes() -> None:
    config = CodeTransformerConfig(dim=48, depth=3, head_dim=16)
    written = torch.zeros(1, 35, dtype=torch.long, device="meta")
    expected = counted(
        lambda: CodeTransformer(config, 100, (5, 7), ConditionSpec()), lambda net: net(Condition(), written)
    )
    assert flops.code_transformer(config, 100, 35) == pytest.approx(expected, rel=TOLERANCE)
