"""Small networks of every kind that the engine knows, each with a call to make."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sfumato.autoencoder.convnet import Padding
from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig
from sfumato.conditioning.condition import Condition, ConditionSpec
from sfumato.denoiser.unet import UNet, UNetConfig

Run = Callable[[nn.Module], Tensor]
CL = torch.channels_last


def unet(text: bool, size: tuple[int, int] = (8, 12), **options: object) -> tuple[nn.Module, Run]:
    config = UNetConfig.model_validate(
        {"channels": 32, "channel_multipliers": (1, 2), "blocks_per_level": 1, **options}
    )
    network = UNet(config, 4, ConditionSpec(token_dim=24 if text else None))
    g = torch.Generator().manual_seed(3)
    for parameter in network.parameters():  # no zero layers: a gradient must reach every parameter
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=g)
    x = torch.randn(2, 4, *size, generator=g).contiguous(memory_format=CL)
    t = torch.tensor([3.0, 700.0])
    tokens = torch.randn(2, 5, 24, generator=g)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    condition = Condition(tokens=tokens, mask=mask) if text else Condition()
    return network, lambda module: module(x, t, condition)


def autoencoder(height: int = 16, width: int = 8, padding: Padding = "zeros") -> tuple[nn.Module, Run]:
    torch.manual_seed(4)
    config = AutoencoderConfig(channels=32, channel_multipliers=(1, 2), blocks_per_level=1, padding=padding)
    network = Autoencoder(config)
    g = torch.Generator().manual_seed(5)
    x = torch.randn(2, 3, height, width, generator=g).contiguous(memory_format=CL)
    noise = torch.randn(2, 4, height // 2, width // 2, generator=g)

    def run(module: nn.Module) -> Tensor:
        assert isinstance(module, Autoencoder)
        encoding = module.encode(x, noise)
        return torch.cat([module.decode(encoding.z).float().flatten(), 1e-3 * encoding.regulariser.float()[None]])

    return network, run


CASES: dict[str, Callable[[], tuple[nn.Module, Run]]] = {
    "unet": lambda: unet(False),
    "unet-text": lambda: unet(True),
    "unet-text-linear": lambda: unet(True, linear_projections=True, heads=2),
    "unet-adaptive-residual": lambda: unet(
        False, scale_shift_norm=True, resample="residual", attention_order="qkv_first"
    ),
    "unet-large": lambda: unet(False, size=(50, 44)),
    "autoencoder": autoencoder,
    "autoencoder-large": lambda: autoencoder(54, 40),
    "autoencoder-reflect": lambda: autoencoder(18, 12, "reflect"),
}


def distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm().clamp_min(1e-12)).item()
