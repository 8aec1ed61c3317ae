"""Between images and latents, in batches and in bands: the only module of `pipeline/` that converts raw ↔ model
latents.

A network that returns non-finite numbers is named in an error.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.autoencoder.model import Autoencoder
from sfumato.autoencoder.scaling import Scaling
from sfumato.autoencoder.tiny import TinyDecoder
from sfumato.engine import tiles
from sfumato.errors import UserError
from sfumato.pipeline.parts import Model


class NotFiniteError(UserError):
    """A network returned NaN or infinite numbers."""


def check_finite(values: Tensor, network: str, what: str) -> Tensor:
    """Returns the values (B, ...). Raises NotFiniteError naming the network if one of them is not finite."""
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values.flatten(1)).all(1)).sum())
        raise NotFiniteError(
            f"the {network} of this model gave {what} that are not finite ({bad} of {len(values)} have NaN or infinite "
            "numbers): its weights are damaged or its training diverged; use an earlier model, or --precision float32"
        )
    return values


@torch.no_grad()
def decode(
    autoencoder: Autoencoder,
    scaling: Scaling,
    latent: Tensor,
    batch: int = 16,
    memory: int = tiles.DEFAULT_MEMORY,
) -> Tensor:
    """Model latents (B, C, h, w) -> images (B, 3, H, W), `batch` at a time; again in float32 where not finite.

    memory: bytes of feature maps; a batch that needs more is split, and large images are decoded in bands. Raises
    NotFiniteError.
    """
    images = []
    for part in latent.split(batch):
        raw = scaling.to_raw(part)
        image = tiles.decode(autoencoder, raw, memory)
        if not bool(torch.isfinite(image).all()):
            with torch.autocast(part.device.type, enabled=False):
                image = tiles.decode(autoencoder, raw.float(), memory)
        images.append(check_finite(image.float(), "decoder", "images"))
    return torch.cat(images)


@torch.no_grad()
def preview(
    tiny: TinyDecoder, scaling: Scaling, latent: Tensor, batch: int = 16, memory: int = tiles.DEFAULT_MEMORY
) -> Tensor:
    """As `decode`, by a tiny decoder; split to fit into `memory`, but a large image is decoded as a whole."""
    at_once = max(1, min(batch, memory // tiny.config.bytes_needed((latent.shape[2], latent.shape[3]))))
    images = torch.cat([tiny(scaling.to_raw(part)).float() for part in latent.split(at_once)])
    return check_finite(images, "tiny decoder", "images")


@torch.no_grad()
def reconstruct(autoencoder: Autoencoder, image: Tensor, batch: int = 16, memory: int = tiles.DEFAULT_MEMORY) -> Tensor:
    """Images (B, 3, H, W) through the autoencoder and back, by the posterior's mean; `memory` as for `decode`."""
    made = []
    for part in image.split(batch):
        latent = autoencoder.latent_from_moments(tiles.encode(autoencoder, part, memory))
        check_finite(latent, "encoder", "latents")
        made.append(check_finite(tiles.decode(autoencoder, latent, memory).float(), "decoder", "images"))
    return torch.cat(made)


@torch.no_grad()
def encode_raw(autoencoder: Autoencoder, image: Tensor, memory: int = tiles.DEFAULT_MEMORY) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] -> raw latents (B, C, h, w): the posterior's mean, VQ before quantisation."""
    latent = autoencoder.latent_from_moments(tiles.encode(autoencoder, image, memory)).float()
    return check_finite(latent, "encoder", "latents")


@torch.no_grad()
def encode(
    autoencoder: Autoencoder, scaling: Scaling, image: Tensor, batch: int = 16, memory: int = tiles.DEFAULT_MEMORY
) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] -> model latents (B, C, h, w); `memory` as for `decode`."""
    return torch.cat([scaling.to_model(encode_raw(autoencoder, part, memory)) for part in image.split(batch)])


def latent_keep(keep: Tensor, factor: int) -> Tensor:
    """A mask of pixels (B, 1, H, W), 1 = keep, 0 = generate -> of latent positions (B, 1, h, w).

    A position is kept only where all its pixels are; a soft mask's values become their minimum.
    """
    return -F.max_pool2d(-keep.float(), factor)


def known_region(model: Model, images: Tensor, keep: Tensor, memory: int = tiles.DEFAULT_MEMORY) -> dict[str, Tensor]:
    """`known` and `keep` of a request, from images (1 or N, 3, H, W) in [-1, 1] and a mask of pixels (1 or N, 1, H, W).

    Raises UserError for a mask of another size.
    """
    if keep.dim() != 4 or keep.shape[-2:] != images.shape[-2:]:
        raise UserError(
            f"keep has the shape {tuple(keep.shape)}, images of {images.shape[-2]}x{images.shape[-1]} require one "
            "value for each pixel"
        )
    latent = encode(model.autoencoder, model.scaling, images.to(model.device), memory=memory)
    return {"known": latent, "keep": latent_keep(keep.to(model.device), model.autoencoder.factor)}
