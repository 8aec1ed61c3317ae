"""Perceptual distances between images, (B,), for the reconstruction loss: fixed networks, always in eval mode.

LPIPS (Zhang et al. 2018) is the published models' choice; its weights are two files supplied by the user.
EfficientNet-Lite0's come from a package of the extra `offline`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.autoencoder.efficientnet import load_efficientnet
from sfumato.errors import UserError
from sfumato.schema import Schema


class NoPerceptual(Schema):
    """Pixels only."""

    kind: Literal["none"] = "none"


class LPIPSConfig(Schema):
    """LPIPS with VGG16, from two files on disk."""

    kind: Literal["lpips"] = "lpips"
    weight: float = Field(1.0, ge=0)
    backbone: Path
    """torchvision's vgg16 weights (keys features.N.weight), .pth or .safetensors."""
    heads: Path
    """The lpips project's linear heads for VGG (keys linN.model.1.weight), .pth or .safetensors."""
    backbone_sha256: str | None = None
    heads_sha256: str | None = None


class EfficientNetConfig(Schema):
    """Distance of EfficientNet-Lite0 features, from the extra `offline`."""

    kind: Literal["efficientnet-lite0"] = "efficientnet-lite0"
    weight: float = Field(1.0, ge=0)


PerceptualConfig = NoPerceptual | LPIPSConfig | EfficientNetConfig
"""Discriminated by `kind`."""


class FeatureDistance(nn.Module):
    """Base of both distances: frozen weights, always in eval mode, three input channels."""

    def _freeze(self) -> None:
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: a distance must not change with the mode of the parent module."""
        return super().train(False)


def as_colour(image: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) -> (B, 3, H, W); raises UserError for other channel counts."""
    C = image.shape[1]
    if C not in (1, 3):
        raise UserError(
            f"a perceptual distance requires images of 1 or 3 channels, not {C}: set perceptual.kind to none"
        )
    return image.expand(-1, 3, -1, -1)


def unit_normalise(features: Tensor) -> Tensor:
    """Each position's feature vector at length 1, in float32: (B, C, h, w)."""
    features = features.float()
    # Not norm + 1e-10 as in the original: the square root's gradient at a zero vector is infinite.
    return features * torch.rsqrt(features.square().sum(dim=1, keepdim=True) + 1e-20)


# ---- LPIPS

_VGG_SLICES = (  # first layer of each slice in torchvision's numbering, and its convolutions' widths
    (0, 3, (64, 64)),
    (4, 64, (128, 128)),
    (9, 128, (256, 256, 256)),
    (16, 256, (512, 512, 512)),
    (23, 512, (512, 512, 512)),
)


def _vgg_slice(first: int, in_channels: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = [] if first == 0 else [nn.MaxPool2d(2)]
    for width in widths:
        layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU()]
        in_channels = width
    sequence = nn.Sequential()
    for i, layer in enumerate(layers):
        sequence.add_module(str(first + i), layer)
    return sequence


class VGG16Features(nn.Module):
    """The five ReLU outputs relu1_2, 2_2, 3_3, 4_3, 5_3."""

    def __init__(self) -> None:
        super().__init__()
        for i, (first, in_channels, widths) in enumerate(_VGG_SLICES, start=1):
            self.add_module(f"slice{i}", _vgg_slice(first, in_channels, widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> five tensors of 64, 128, 256, 512, 512 channels at strides 1, 2, 4, 8, 16."""
        features = []
        for piece in self.children():
            x = piece(x)
            features.append(x)
        return features


class InputScaling(nn.Module):
    """ImageNet's normalisation for images in [-1, 1]."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[None, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> the same."""
        return (x - self.shift) / self.scale


class LinearHead(nn.Module):
    """Non-negative weights of one layer's channels. The original's dropout is left out: it is inactive in
    evaluation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, squared_difference: Tensor) -> Tensor:
        """(B, C, h, w) -> (B,): weighted sum over C, mean over positions, in float32."""
        weight = self.model.get_parameter("1.weight").float().flatten()
        return squared_difference.mean(dim=(2, 3)) @ weight


class LPIPS(FeatureDistance):
    """LPIPS with VGG16; parameter names are those of published first-stage checkpoints (`loss.perceptual_loss.*`)."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = InputScaling()
        self.net = VGG16Features()
        for i, (_, _, widths) in enumerate(_VGG_SLICES):
            self.add_module(f"lin{i}", LinearHead(widths[-1]))
        self._freeze()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances (B,) of images (B, 3, H, W) in [-1, 1]; gradients flow to whichever of them needs one."""
        pairs = zip(self.features(x), self.features(y), strict=True)
        total = x.new_zeros(x.shape[0], dtype=torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            for i, (a, b) in enumerate(pairs):
                total = total + self.get_submodule(f"lin{i}")((unit_normalise(a) - unit_normalise(b)).square())
        return total

    def features(self, image: Tensor) -> list[Tensor]:
        """The five feature maps of images (B, 1 or 3, H, W) in [-1, 1]."""
        return self.net(self.scaling_layer(as_colour(image)))


def load_lpips(
    backbone: Path, heads: Path, backbone_sha256: str | None = None, heads_sha256: str | None = None
) -> LPIPS:
    """LPIPS from torchvision's vgg16 file and the lpips project's VGG heads.

    Args:
        backbone: .pth or .safetensors with `features.N.{weight,bias}`; other keys (the classifier) are ignored.
        heads: .pth or .safetensors with `linN.model.1.weight`.
        backbone_sha256, heads_sha256: expected hashes of the files; None skips the check.

    Raises:
        UserError: if a file is absent, its hash differs, or it lacks tensors.
    """
    missing = [str(path) for path in (backbone, heads) if not Path(path).is_file()]
    if missing:
        raise UserError(
            f"LPIPS needs two files and {' and '.join(missing)} cannot be found: perceptual.backbone is torchvision's "
            "vgg16 weights (vgg16-397923af.pth), perceptual.heads its heads (lpips/weights/v0.1/vgg.pth); "
            'without them set perceptual.kind to "efficientnet-lite0" (pip install "sfumato[offline]") or "none"'
        )
    model = LPIPS()
    state = model.state_dict()
    backbone_tensors = read_tensors(Path(backbone), backbone_sha256)
    heads_tensors = read_tensors(Path(heads), heads_sha256)
    for key, target in state.items():
        if key.startswith("scaling_layer."):
            continue
        if key.startswith("net."):
            source, tensors, path = "features." + key.split(".", 2)[2], backbone_tensors, backbone
        else:
            source, tensors, path = key, heads_tensors, heads
        if source not in tensors or tensors[source].shape != target.shape:
            raise UserError(f"{path} is not the file LPIPS needs: it has no {source} of shape {list(target.shape)}")
        state[key] = tensors[source]
    model.load_state_dict(state)
    return model


def read_tensors(path: Path, sha256: str | None = None) -> Mapping[str, Tensor]:
    """The tensors of a .safetensors or .pth file, without unpickling code; raises UserError if the hash differs."""
    if path.exists() and not path.is_file():  # reading a pipe or a device might never end
        raise UserError(f"{path} is not a regular file: give a .safetensors or .pth file of weights")
    if sha256 is not None:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != sha256.lower():
            raise UserError(
                f"{path} has the sha256 {actual}, not {sha256}: fetch the file again or correct the expected hash"
            )
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    return loaded.get("state_dict", loaded)


# ---- EfficientNet-Lite0

_EFFICIENTNET_BLOCKS = (0, 2, 4, 7)  # the last block at each of the strides 2, 4, 8, and one of 16


class EfficientNetFeatures(FeatureDistance):
    """As LPIPS without learned heads: squared distance of unit feature vectors, mean over positions and stages."""

    def __init__(self) -> None:
        """Raises UserError if the package with the weights is not installed."""
        super().__init__()
        self.net = load_efficientnet(_EFFICIENTNET_BLOCKS)
        self._freeze()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances (B,) of images (B, 1 or 3, H, W) in [-1, 1]; gradients flow to whichever of them needs one."""
        pairs = zip(self.net(as_colour(x)), self.net(as_colour(y)), strict=True)
        with torch.autocast(x.device.type, enabled=False):
            stages = [(unit_normalise(a) - unit_normalise(b)).square().sum(dim=1).mean(dim=(1, 2)) for a, b in pairs]
            return torch.stack(stages).mean(dim=0)


def build_perceptual(config: PerceptualConfig) -> FeatureDistance | None:
    """The distance of a configuration, None for "none"; raises UserError where its weights are absent."""
    if isinstance(config, LPIPSConfig):
        return load_lpips(config.backbone, config.heads, config.backbone_sha256, config.heads_sha256)
    if isinstance(config, EfficientNetConfig):
        return EfficientNetFeatures()
    return None
