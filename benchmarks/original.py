"""The original code's networks with our weights, from a checkout of it: `python -m benchmarks --original PATH`.

Its package `ldm` is imported from there and from nowhere else, and forgotten again. Keys are the same on both sides (an
export only puts prefixes before them), and the constructors' arguments are those of the YAML that an export writes.
"""

import argparse
import contextlib
import importlib
import io
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from torch import Tensor, nn

from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig
from sfumato.conditioning.embeddings import EmbeddingsConfig
from sfumato.conditioning.table import NoneConfig
from sfumato.denoiser.unet import UNet, UNetConfig
from sfumato.diffusion.schedule import ScaledLinearConfig
from sfumato.interop.original_dump import dump_original
from sfumato.model import DiffusionConfig, ModelConfig

UNETS = "ldm.modules.diffusionmodules.openaimodel"
FIRST_STAGES = "ldm.modules.diffusionmodules.model"
AVERAGES = "ldm.modules.ema"
STAND_INS = {"omegaconf.listconfig": "ListConfig"}
"""Module -> its class, of which the networks only ask whether a value is one: an empty one does where it is missing."""

M = TypeVar("M", bound=nn.Module)


def checkout(text: str) -> Path:
    """The folder of the original code that an argument names.

    Raises ArgumentTypeError for a folder without it, and for code that cannot be imported here.
    """
    path = Path(text)
    if not (path / "ldm").is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} has no folder ldm: give a checkout of CompVis/latent-diffusion")
    try:
        with importable(path):
            for name in (UNETS, FIRST_STAGES, AVERAGES):
                importlib.import_module(name)
    except ImportError as error:
        raise argparse.ArgumentTypeError(
            f"the code in {text!r} cannot be imported: {error}; what it lacks has to be installed"
        ) from None
    return path


@contextlib.contextmanager
def importable(path: Path) -> Iterator[None]:
    """Within, `ldm` is the one of the checkout and prints nothing; a missing module of STAND_INS is stood in for.

    Afterwards neither is among the imported modules, and what had these names before is back.
    """
    package = ModuleType("ldm")
    package.__path__ = [str(path / "ldm")]
    added = {"ldm": package}
    for name, wanted in STAND_INS.items():
        if find_spec(_root(name)) is None:
            added[name] = ModuleType(name)
            setattr(added[name], wanted, type(wanted, (), {}))
    roots = {_root(name) for name in added}
    aside = _taken_out(roots)
    sys.modules.update(added)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        _taken_out(roots)
        sys.modules.update(aside)


def original_unet(path: Path, ours: UNet, config: UNetConfig, token_dim: int | None, size: int) -> nn.Module:
    """The original's U-Net for latents (B, 4, size, size); with tokens it checkpoints, as in its YAML for text."""
    first = AutoencoderConfig()
    diffusion = DiffusionConfig(
        denoiser=config,
        conditioner=NoneConfig() if token_dim is None else EmbeddingsConfig(dim=token_dim),
        schedule=ScaledLinearConfig(),
    )
    side = size * first.factor
    params = _params(ModelConfig(autoencoder=first, image_size=(side, side), diffusion=diffusion))
    with importable(path):
        kind = importlib.import_module(UNETS).UNetModel
        theirs = kind(**params["unet_config"]["params"], use_checkpoint=token_dim is not None)
    return _loaded(theirs, ours)


class FirstStage(nn.Module):
    """The original's AutoencoderKL, without Lightning: encoder and decoder between two 1x1 convolutions."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latent_channels: int, raw_channels: int) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * raw_channels, 1)
        self.post_quant_conv = nn.Conv2d(raw_channels, latent_channels, 1)

    def encode(self, image: Tensor) -> Tensor:
        """Mean and log variance, (B, 2C, h, w)."""
        moments: Tensor = self.quant_conv(self.encoder(image))
        return moments

    def decode(self, z: Tensor) -> Tensor:
        """(B, 3, H, W)."""
        image: Tensor = self.decoder(self.post_quant_conv(z))
        return image


def original_autoencoder(path: Path, ours: Autoencoder, config: AutoencoderConfig, size: int) -> FirstStage:
    """The original's first stage for images (B, 3, size, size)."""
    ddconfig = _params(ModelConfig(autoencoder=config, image_size=(size, size)))["ddconfig"]
    with importable(path):
        code = importlib.import_module(FIRST_STAGES)
        encoder, decoder = code.Encoder(**ddconfig), code.Decoder(**ddconfig)
    return _loaded(FirstStage(encoder, decoder, config.latent_channels, config.raw_channels), ours)


def original_average(path: Path, module: nn.Module, decay: float) -> Callable[[], None]:
    """The original's moving average of the weights; the result updates it."""
    with importable(path):
        shadow = importlib.import_module(AVERAGES).LitEma(module, decay=decay)
    return lambda: shadow(module)


def _params(config: ModelConfig) -> dict[str, Any]:
    """`model.params` of the original's YAML."""
    params: dict[str, Any] = dump_original(config, 1.0, lambda _: None)["model"]["params"]
    return params


def _loaded(theirs: M, ours: nn.Module) -> M:
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs.eval()


def _root(name: str) -> str:
    return name.partition(".")[0]


def _taken_out(roots: set[str]) -> dict[str, ModuleType]:
    """The packages of these names, with all below them, no longer among the imported modules."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if _root(name) in roots}
