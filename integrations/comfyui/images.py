"""ComfyUI's images and masks <-> PIL images."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_images(values: Tensor) -> list[Image.Image]:
    """IMAGE (B, H, W, 3 or 4) or MASK (B, H, W), in [0, 1] -> B images of mode RGB, RGBA or L."""
    bytes_ = (values.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return [Image.fromarray(np.squeeze(one, -1) if one.shape[-1:] == (1,) else one) for one in bytes_]


def from_images(images: Sequence[Image.Image]) -> Tensor:
    """Images of one size -> IMAGE (B, H, W, 3) float32 in [0, 1]."""
    arrays = [np.asarray(image.convert("RGB"), np.float32) / 255 for image in images]
    return torch.from_numpy(np.stack(arrays))


def from_tensor(images: Tensor) -> Tensor:
    """(B, 3, H, W) in about [-1, 1] -> IMAGE (B, H, W, 3) float32 in [0, 1]."""
    return ((images.detach().cpu().float() + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).contiguous()


def to_tensor(values: Tensor) -> Tensor:
    """IMAGE (B, H, W, C) in [0, 1] -> (B, 3, H, W) in [-1, 1]."""
    return values[..., :3].permute(0, 3, 1, 2).contiguous() * 2 - 1
