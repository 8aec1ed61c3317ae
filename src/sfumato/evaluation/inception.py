"""The Inception of FID: TensorFlow's network of December 2015, with the key names of its published port.

Szegedy et al. 2015 describe it; the port `pt_inception-2015-12-05-6726825d.pth` holds its weights. It differs from
later Inceptions: average pooling in the blocks excludes the padding, the last block uses max pooling, 1008 classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.autoencoder.perceptual import read_tensors
from sfumato.errors import UserError
from sfumato.evaluation.features import FeatureNetwork, Features, MapNetwork, file_sha256
from sfumato.evaluation.resize import ResizeFilter

INCEPTION = "inception"
FILE = "pt_inception-2015-12-05-6726825d.pth"
WHERE = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SHA256_START = "6726825d"
_SIDE = 299
_SPATIAL_CHANNELS = 7

Pair = tuple[int, int]


class ConvNorm(nn.Module):
    """Convolution, batch normalisation with fixed moments, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int | Pair, stride: int = 1, padding: int | Pair = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return F.relu(self.bn(self.conv(x)))


def average(x: Tensor) -> Tensor:
    """3 × 3 average pooling of the same size, without padding at the border."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class Block(nn.Module):
    """Branches side by side, their channels joined. Each branch is a chain of named layers, or a fork of two."""

    def _chain(self, names: Sequence[str], x: Tensor) -> Tensor:
        for name in names:
            x = self.get_submodule(name)(x)
        return x


class Block35(Block):
    """The 35 × 35 block: 64 + 64 + 96 + pooled channels."""

    def __init__(self, in_channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNorm(in_channels, 64, 1)
        self.branch5x5_1 = ConvNorm(in_channels, 48, 1)
        self.branch5x5_2 = ConvNorm(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvNorm(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvNorm(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3, padding=1)
        self.branch_pool = ConvNorm(in_channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 224 + pooled, H, W)."""
        five = self._chain(("branch5x5_1", "branch5x5_2"), x)
        double = self._chain(("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), x)
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(average(x))], dim=1)


class Reduction17(Block):
    """From 35 × 35 to 17 × 17."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3 = ConvNorm(in_channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvNorm(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvNorm(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 480 + C, about H/2, about W/2)."""
        double = self._chain(("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), x)
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], dim=1)


class Block17(Block):
    """The 17 × 17 block with factorised 7 × 7 kernels."""

    def __init__(self, in_channels: int, c: int) -> None:
        super().__init__()
        row: Pair = (0, 3)
        column: Pair = (3, 0)
        self.branch1x1 = ConvNorm(in_channels, 192, 1)
        self.branch7x7_1 = ConvNorm(in_channels, c, 1)
        self.branch7x7_2 = ConvNorm(c, c, (1, 7), padding=row)
        self.branch7x7_3 = ConvNorm(c, 192, (7, 1), padding=column)
        self.branch7x7dbl_1 = ConvNorm(in_channels, c, 1)
        self.branch7x7dbl_2 = ConvNorm(c, c, (7, 1), padding=column)
        self.branch7x7dbl_3 = ConvNorm(c, c, (1, 7), padding=row)
        self.branch7x7dbl_4 = ConvNorm(c, c, (7, 1), padding=column)
        self.branch7x7dbl_5 = ConvNorm(c, 192, (1, 7), padding=row)
        self.branch_pool = ConvNorm(in_channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 768, H, W)."""
        seven = self._chain([f"branch7x7_{i}" for i in (1, 2, 3)], x)
        double = self._chain([f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)], x)
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(average(x))], dim=1)


class Reduction8(Block):
    """From 17 × 17 to 8 × 8."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = ConvNorm(in_channels, 192, 1)
        self.branch3x3_2 = ConvNorm(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvNorm(in_channels, 192, 1)
        self.branch7x7x3_2 = ConvNorm(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = ConvNorm(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = ConvNorm(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 512 + C, about H/2, about W/2)."""
        three = self._chain(("branch3x3_1", "branch3x3_2"), x)
        seven = self._chain([f"branch7x7x3_{i}" for i in (1, 2, 3, 4)], x)
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], dim=1)


class Block8(Block):
    """The 8 × 8 block with forked branches; the last of the two uses max pooling."""

    def __init__(self, in_channels: int, by_maximum: bool) -> None:
        super().__init__()
        self.by_maximum = by_maximum
        self.branch1x1 = ConvNorm(in_channels, 320, 1)
        self.branch3x3_1 = ConvNorm(in_channels, 384, 1)
        self.branch3x3_2a = ConvNorm(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = ConvNorm(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = ConvNorm(in_channels, 448, 1)
        self.branch3x3dbl_2 = ConvNorm(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvNorm(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = ConvNorm(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = ConvNorm(in_channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2048, H, W)."""
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pool = F.max_pool2d(x, 3, 1, 1) if self.by_maximum else average(x)
        forks = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        forks += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([self.branch1x1(x), *forks, self.branch_pool(pool)], dim=1)


class FIDInception(MapNetwork):
    """Pooled 2048 features; the first channels of a 17 × 17 map for sFID (Nash et al. 2021); logits without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3)
        self.Mixed_5b = Block35(192, 32)
        self.Mixed_5c = Block35(256, 64)
        self.Mixed_5d = Block35(288, 64)
        self.Mixed_6a = Reduction17(288)
        self.Mixed_6b = Block17(768, 128)
        self.Mixed_6c = Block17(768, 160)
        self.Mixed_6d = Block17(768, 160)
        self.Mixed_6e = Block17(768, 192)
        self.Mixed_7a = Reduction8(768)
        self.Mixed_7b = Block8(1280, by_maximum=False)
        self.Mixed_7c = Block8(2048, by_maximum=True)
        self.fc = nn.Linear(2048, 1008)
        self.requires_grad_(False).eval()

    def _mixed_6c(self, images: Tensor) -> Tensor:
        x = (images * 127.5 - 0.5) / 128  # (pixel − 128) / 128 for pixels in 0..255
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        return self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))

    def maps(self, images: Tensor) -> Tensor:
        """The 17 × 17 map of 768 channels."""
        return self.Mixed_6e(self.Mixed_6d(self._mixed_6c(images)))

    def forward(self, images: Tensor) -> Features:
        """(B, 3, h, w) in [-1, 1]."""
        x = self._mixed_6c(images)
        spatial = self.Mixed_6d.branch1x1.conv(x)[:, :_SPATIAL_CHANNELS]  # "mixed_6/conv" of the graph, unnormalised
        x = self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(x)))
        vector = self.Mixed_7c(self.Mixed_7b(x)).mean(dim=(2, 3))
        return Features(vector, spatial.flatten(1), F.linear(vector, self.fc.weight))


def load_inception(path: Path, sha256: str | None = None, resize_filter: ResizeFilter = "tensorflow") -> FeatureNetwork:
    """The network with the published weights, by key; the only one whose distance is called FID.

    Args:
        path: `pt_inception-2015-12-05-6726825d.pth`.
        sha256: expected hash; by default the published file's, whose name ends in its first digits.
        resize_filter: "tensorflow" is the original's; "bicubic" gives clean-fid's numbers, which differ.

    Raises:
        UserError: the file is missing, is another one, or lacks tensors.
    """
    if not path.is_file():
        raise UserError(
            f"the Inception weights {str(path)!r} do not exist: download {WHERE}, or use efficientnet-lite0"
        )
    found = file_sha256(path)
    if not found.startswith((sha256 or SHA256_START).lower()):
        raise UserError(
            f"{str(path)!r} is not {FILE}: its sha256 is {found}, not {sha256 or SHA256_START + '…'}; "
            "without the original's weights a score is not FID"
        )
    network = FIDInception()
    load_by_key(network, read_tensors(path), path)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks the keyword
    return FeatureNetwork(INCEPTION, network, 2048, (_SIDE, _SIDE), resize_filter, found)


def load_by_key(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fills a network; UserError naming the first tensor that is missing or has another shape."""
    state = network.state_dict()
    for key, target in state.items():
        if key.endswith("num_batches_tracked"):  # counts training batches; older files lack it
            continue
        if key not in tensors or tensors[key].shape != target.shape:
            has = f"of shape {list(tensors[key].shape)}" if key in tensors else "none"
            raise UserError(
                f"{str(path)!r} is not {FILE}: {key} must have the shape {list(target.shape)}, it has {has}"
            )
        state[key] = tensors[key]
    network.load_state_dict(state)
