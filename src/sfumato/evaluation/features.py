"""Images -> features of a fixed, named network, in which distances between sets of images are measured."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from sfumato.autoencoder.efficientnet import EfficientNetLite0, FoldedConv, weights_path
from sfumato.errors import UserError
from sfumato.evaluation.resize import ResizeFilter, resize


@dataclass(frozen=True)
class Features:
    """The features of a batch: `pooled` (B, D); `spatial` (B, S), a coarse map flattened; `logits` (B, K).

    float32 on the CPU. spatial and logits are None if the network has none.
    """

    pooled: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


class MapNetwork(nn.Module):
    """A network that also has a map of features, before they are pooled."""

    def maps(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) in [-1, 1] -> (B, D', h', w')."""
        raise NotImplementedError


@dataclass(frozen=True)
class FeatureNetwork:
    """A feature network with everything that identifies a score.

    Args:
        name: as in the name of a score: FD-efficientnet-lite0.
        network: images (B, 3, h, w) in [-1, 1] of its size -> Features on its device.
        dim: D, the length of `pooled`.
        size: (h, w) of its input.
        filter: how images of other sizes are resized.
        sha256: hash of the weights' file.
    """

    name: str
    network: nn.Module
    dim: int
    size: tuple[int, int]
    filter: ResizeFilter
    sha256: str

    def __call__(self, images: Tensor) -> Features:
        """Features of images (B, 1 or 3, H, W), float in [-1, 1] (clipped beyond) or uint8; grey ones are repeated.

        Raises UserError for other shapes, and for images or features that are not finite.
        """
        x = self._input(images)
        # a surrounding autocast, meant for the model that samples, must not reduce the precision of scores
        with torch.inference_mode(), torch.autocast(x.device.type, enabled=False):
            found: Features = self.network(x)
        found = Features(*(None if t is None else t.float().cpu() for t in _parts(found)))  # type: ignore[arg-type]
        if not torch.isfinite(found.pooled).all():
            raise UserError(
                f"{self.name} gave features that are not finite for {_rows(found.pooled)} of {len(x)} images: "
                "are its weights damaged?"
            )
        return found

    def maps(self, images: Tensor) -> Tensor:
        """The map of features of images as above: (B, D', h', w') float32 on the network's device, without gradients.

        Raises UserError as above, and for a network that has no map.
        """
        if not isinstance(self.network, MapNetwork):
            raise UserError(f"{self.name} has no map of features: choose another network")
        x = self._input(images.detach())
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return self.network.maps(x).float()

    def _input(self, images: Tensor) -> Tensor:
        """The network's input, channels-last on its device."""
        if images.dim() != 4 or images.shape[1] not in (1, 3):
            raise UserError(f"{self.name} takes images (B, 1 or 3, H, W), not {tuple(images.shape)}")
        x = images.to(next(self.network.parameters()).device)
        x = x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x.float()
        if not torch.isfinite(x).all():
            raise UserError(f"{_rows(x)} of a batch of {len(x)} images contain values that are not finite (NaN or inf)")
        # clipped before, not after: the bicubic filter overshoots, which is part of the protocol
        x = resize(x.clamp(-1, 1), self.size, self.filter).expand(-1, 3, -1, -1)
        return x.contiguous(memory_format=torch.channels_last)

    def to(self, device: torch.device | str) -> Self:
        """The same network, moved."""
        return replace(self, network=self.network.to(device))

    def describe(self) -> dict[str, object]:
        """The description of the network in a result."""
        return {
            "name": self.name,
            "dimensions": self.dim,
            "size": list(self.size),
            "resize": self.filter,
            "sha256": self.sha256,
        }


def _parts(features: Features) -> tuple[Tensor | None, ...]:
    return features.pooled, features.spatial, features.logits


def _rows(values: Tensor) -> int:
    """How many rows contain values that are not finite."""
    return int((~torch.isfinite(values.flatten(1))).any(dim=1).sum())


def extract(network: FeatureNetwork, batches: Iterable[Tensor]) -> Iterator[Features]:
    """The features of one batch after the other; images are not kept."""
    for images in batches:
        yield network(images)


def pooled(network: FeatureNetwork, batches: Iterable[Tensor]) -> Tensor:
    """The pooled features of all batches, (N, D) float32. Raises UserError if there is no image."""
    parts = [found.pooled for found in extract(network, batches)]
    if not parts:
        raise UserError("there are no images to compute features of")
    return torch.cat(parts)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex. Raises UserError for what is no regular file: reading a pipe might never end."""
    if path.exists() and not path.is_file():
        raise UserError(f"{str(path)!r} is not a regular file: give a file of weights")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- EfficientNet-Lite0

EFFICIENTNET = "efficientnet-lite0"
_SIDE = 224
_MIDDLE, _LAST = 10, 15
_SPATIAL_CHANNELS = 7  # as many as sFID uses of Inception: enough for layout, few enough for a covariance


class EfficientNetFeatures(MapNetwork):
    """EfficientNet-Lite0's pooled 1280 features and ImageNet logits; its stride-16 map's first channels as spatial."""

    def __init__(self) -> None:
        """Raises UserError if the package with the weights is not installed."""
        super().__init__()
        tensors = torch.load(weights_path(), map_location="cpu", weights_only=True)
        self.net = EfficientNetLite0(tensors, (_MIDDLE, _LAST))
        self.head = FoldedConv(tensors, "_conv_head", "_bn1")
        self.classifier = nn.Linear(1280, 1000)
        self.classifier.load_state_dict({"weight": tensors["_fc.weight"], "bias": tensors["_fc.bias"]})
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks the keyword

    def forward(self, images: Tensor) -> Features:
        """(B, 3, h, w) in [-1, 1]."""
        middle, last = self.net(images)
        vector = self.head(last).mean(dim=(2, 3))
        return Features(vector, middle[:, :_SPATIAL_CHANNELS].flatten(1), self.classifier(vector))

    def maps(self, images: Tensor) -> Tensor:
        """The map of 112 channels at a sixteenth of the input's size."""
        middle, _ = self.net(images)
        found: Tensor = middle
        return found


def efficientnet_lite0(side: int = _SIDE, resize_filter: ResizeFilter = "bicubic") -> FeatureNetwork:
    """The default that needs no download: 1280 features from the installed package.

    Args:
        side: images are resized to side × side; other sides than 224 are faster or finer, and part of the name.
        resize_filter: the filter of the resize.

    Raises:
        UserError: the package is not installed or the side is below 32.
    """
    if side < 32:
        raise UserError(f"{EFFICIENTNET}@{side}: the network needs images of 32 x 32 at least")
    name = EFFICIENTNET if side == _SIDE else f"{EFFICIENTNET}@{side}"
    sha256 = file_sha256(weights_path())
    return FeatureNetwork(name, EfficientNetFeatures(), 1280, (side, side), resize_filter, sha256)
