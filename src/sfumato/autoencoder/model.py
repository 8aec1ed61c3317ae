"""The autoencoder of the first stage: image <-> latent (Rombach et al. 2022, section 3.1)."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.autoencoder.bottleneck import Encoding, VectorQuantizer, gaussian_kl, gaussian_moments, gaussian_sample
from sfumato.autoencoder.convnet import AttentionKind, Decoder, Encoder, Padding
from sfumato.errors import UserError
from sfumato.schema import Schema

SMALLEST_REFLECTED = 2
"""Numbers along a side of the smallest map that can be mirrored at its border."""


class KLConfig(Schema):
    """A Gaussian posterior, held near N(0, 1) by a small KL weight (LossConfig.kl_weight)."""

    kind: Literal["kl"] = "kl"
    initial_log_variance: float | None = Field(None, ge=-30, le=20)
    """The bias of the posterior's log variance before training. None: near 0, as the original, whose latents are mostly
    noise for the first thousands of steps; -6 starts with little noise and reaches the same loss sooner."""


class VQConfig(Schema):
    """A codebook; the search for the nearest code belongs to the decoder."""

    kind: Literal["vq"] = "vq"
    codes: int = Field(8192, ge=1, le=10_000_000)
    beta: float = Field(0.25, ge=0)
    legacy: bool = True
    """beta weights the codebook term, as in the published models; False: the commitment term, as in the paper."""
    normalise: bool = False
    """Latents and codes on the unit sphere."""
    kmeans_init: bool = False
    """The training loop sets the codebook to cluster means of the first latents."""
    revive_every: int = Field(0, ge=0)
    """Interval in steps at which the training loop moves unused codes onto latents; 0: never."""


class PixelsConfig(Schema):
    """No first stage: the latent is the image, f = 1. For diffusion in pixel space, the paper's LDM-1."""

    kind: Literal["pixels"] = "pixels"


class AutoencoderConfig(Schema):
    """Topology of the autoencoder; the defaults are the published kl-f8.

    Example:
        >>> config = sfumato.AutoencoderConfig(channel_multipliers=(1, 2, 4), latent_channels=3)
        >>> config.factor
        4
    """

    image_channels: int = Field(3, ge=1, le=1024)
    channels: int = Field(128, ge=1, le=65536)
    channel_multipliers: tuple[int, ...] = Field((1, 2, 4, 4), min_length=1, max_length=10)
    """Width of each level over `channels`, the full resolution first; the downsampling factor is 2 ** (length - 1)."""
    blocks_per_level: int = Field(2, ge=1, le=64)
    attention_levels: tuple[int, ...] = ()
    """Levels (0 = full resolution) whose blocks have attention, besides the middle block."""
    attention: AttentionKind = "softmax"
    latent_channels: int = Field(4, ge=1, le=65536)
    """Channels between the encoder's last convolution and quant_conv."""
    embed_channels: int | None = Field(None, ge=1, le=65536)
    """Channels of the latent itself; None: latent_channels."""
    dropout: float = Field(0.0, ge=0, lt=1)
    norm_groups: int = Field(32, ge=1, le=65536)
    """Groups of every norm; use fewer with few channels, so that a group has several channels."""
    padding: Padding = "zeros"
    """Padding of every 3×3 convolution. zeros, as published, lets the network detect the border; reflect mirrors the
    image there, and such a model cannot be exported in the original's or diffusers' layout."""
    bottleneck: Annotated[KLConfig | VQConfig | PixelsConfig, Field(discriminator="kind")] = KLConfig()

    @model_validator(mode="after")
    def _levels_exist(self) -> Self:
        unknown = [level for level in self.attention_levels if not 0 <= level < len(self.channel_multipliers)]
        if unknown:
            last = len(self.channel_multipliers) - 1
            raise ValueError(f"attention_levels {unknown} do not exist: channel_multipliers has levels 0 to {last}")
        if not all(1 <= m <= 1024 for m in self.channel_multipliers):
            raise ValueError(f"channel_multipliers {self.channel_multipliers} must be between 1 and 1024")
        if self.bottleneck.kind == "pixels" and len(self.channel_multipliers) > 1:
            raise ValueError("bottleneck.kind pixels has f = 1: set channel_multipliers to [1]")
        return self

    @property
    def factor(self) -> int:
        """f: pixels per latent position along each side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def raw_channels(self) -> int:
        """Channels of the latent."""
        if self.bottleneck.kind == "pixels":
            return self.image_channels
        return self.embed_channels if self.embed_channels is not None else self.latent_channels


class Autoencoder(nn.Module):
    """Encoder, bottleneck and decoder; parameter names are those of the published checkpoints.

    Example:
        >>> config = sfumato.AutoencoderConfig(channels=8, channel_multipliers=(1, 2), norm_groups=4)
        >>> autoencoder = sfumato.Autoencoder(config)
        >>> encoding = autoencoder.encode(torch.zeros(1, 3, 16, 24))
        >>> encoding.z.shape, autoencoder.decode(encoding.z).shape
        (torch.Size([1, 4, 8, 12]), torch.Size([1, 3, 16, 24]))
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.factor = config.factor
        self.latent_channels = config.raw_channels
        self.variational = config.bottleneck.kind == "kl"
        """Whether the moments are those of a Gaussian posterior, mean and log variance."""
        self.quantize: VectorQuantizer | None = None
        if config.bottleneck.kind != "pixels":
            self._build(config)

    def _build(self, config: AutoencoderConfig) -> None:
        widths = [config.channels * m for m in config.channel_multipliers]
        parameters = 2 if config.bottleneck.kind == "kl" else 1  # mean and log variance, or the latent alone
        z, embed = config.latent_channels, config.raw_channels
        self.encoder = Encoder(
            config.image_channels,
            parameters * z,
            config.channels,
            widths,
            config.blocks_per_level,
            config.attention_levels,
            config.attention,
            config.dropout,
            config.norm_groups,
            config.padding,
        )
        self.decoder = Decoder(
            z,
            config.image_channels,
            widths,
            config.blocks_per_level,
            config.attention_levels,
            config.attention,
            config.dropout,
            config.norm_groups,
            config.padding,
        )
        if isinstance(config.bottleneck, VQConfig):
            vq = config.bottleneck
            self.quantize = VectorQuantizer(vq.codes, embed, vq.beta, vq.legacy, vq.normalise)
        self.quant_conv = nn.Conv2d(parameters * z, parameters * embed, 1)
        self.post_quant_conv = nn.Conv2d(embed, z, 1)
        if isinstance(config.bottleneck, KLConfig) and config.bottleneck.initial_log_variance is not None:
            assert self.quant_conv.bias is not None
            nn.init.constant_(self.quant_conv.bias[embed:], config.bottleneck.initial_log_variance)

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Encoding:
        """Image (B, image_channels, H, W) in [-1, 1] -> its latent.

        Args:
            image: H and W are multiples of the factor.
            noise: (B, C, h, w) from N(0, 1), samples the KL posterior; None uses its mean. Ignored by VQ.

        Raises:
            UserError: if H or W is not a multiple of the factor.
        """
        H, W = image.shape[-2:]
        if H % self.factor or W % self.factor:
            raise UserError(
                f"image size {H}x{W} (height x width) is not a multiple of {self.factor}, the autoencoder's "
                "downsampling factor: resize, crop or pad the image"
            )
        self._check_border(H // self.factor, W // self.factor)
        if self.config.bottleneck.kind == "pixels":
            return Encoding(z=image, regulariser=image.new_zeros(()), moments=image, indices=None)
        h = self.quant_conv(self.encoder(image.to(self.quant_conv.weight.dtype)))
        if self.quantize is not None:
            return self.quantize(h)
        moments = gaussian_moments(h)
        return Encoding(
            z=gaussian_sample(moments, noise),
            regulariser=gaussian_kl(moments).mean(),
            moments=moments,
            indices=None,
        )

    def decode(self, z: Tensor, quantize: bool = True) -> Tensor:
        """Latent (B, C, h, w) -> image (B, image_channels, f·h, f·w), unbounded.

        VQ: the latent is first replaced by its nearest codes (straight-through gradient), unless quantize is False.
        The codes themselves stay as they are, so `Encoding.z` decodes to the same image either way.
        """
        if self.config.bottleneck.kind == "pixels":
            return z
        self._check_border(*z.shape[-2:])
        if self.quantize is not None and quantize:
            z = self.quantize.quantise(z)
        return self.decoder(self.post_quant_conv(z.to(self.post_quant_conv.weight.dtype)))

    def _check_border(self, h: int, w: int) -> None:
        """Raises UserError for a latent of (h, w) that is too small to be mirrored at its border."""
        if self.config.padding == "reflect" and min(h, w) < SMALLEST_REFLECTED:
            f = self.factor
            raise UserError(
                f"an image of {f * h}x{f * w} (height x width) leaves a latent of {h}x{w}, and padding: reflect needs "
                f"at least {SMALLEST_REFLECTED} along each side: give an image of {SMALLEST_REFLECTED * f} pixels or "
                "more"
            )

    def decode_indices(self, indices: Tensor) -> Tensor:
        """VQ: codes (B, h, w) long -> image (B, image_channels, f·h, f·w); raises ValueError for a KL autoencoder."""
        if self.quantize is None:
            raise ValueError("decode_indices: a KL autoencoder has no codebook; decode a latent instead")
        return self.decode(self.quantize.embed(indices), quantize=False)

    def latent_from_moments(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """`Encoding.moments` -> the raw latent of the diffusion model, (B, C, h, w).

        KL: a sample with noise (B, C, h, w), or the mean where noise is None. VQ: the latent before quantisation.
        Pixels: the image.
        """
        return gaussian_sample(moments, noise) if self.variational else moments

    def freeze_latents(self) -> None:
        """Freezes every parameter that affects the latents; the decoder remains trainable."""
        self.requires_grad_(False)
        self.post_quant_conv.requires_grad_(True)
        self.decoder.requires_grad_(True)

    def last_layer(self) -> Tensor:
        """The weight at which reconstruction and adversarial gradients are balanced."""
        return self.decoder.conv_out.weight


_DECODING = ("decoder.", "post_quant_conv.", "quantize.")
"""The modules after the moments."""

_ENCODING = {"image_channels", "channels", "channel_multipliers", "blocks_per_level", "attention_levels", "attention"}
_ENCODING |= {"latent_channels", "embed_channels", "norm_groups"}
"""The settings that determine the moments, besides the kind of the bottleneck and `normalise` of a codebook."""


def encoder_digest(autoencoder: Autoencoder) -> str:
    """32 hex digits that identify what determines `Encoding.moments`: the encoder's weights and settings, nothing else.

    Decoder, codebook, dropout and training settings do not enter: a model whose decoder was replaced or fine-tuned has
    the same digest.
    """
    config = autoencoder.config
    settings = config.model_dump(mode="json", include=_ENCODING)
    settings["bottleneck"] = config.bottleneck.kind
    settings["normalise"] = isinstance(config.bottleneck, VQConfig) and config.bottleneck.normalise
    settings["embed_channels"] = config.raw_channels
    if config.padding != "zeros":  # models from before there was a choice keep their digest
        settings["padding"] = config.padding
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(autoencoder.state_dict().items()):
        if not name.startswith(_DECODING):
            key.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            key.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return key.hexdigest()[:32]


def _explicit(config: AutoencoderConfig) -> AutoencoderConfig:
    """The configuration with the default of `embed_channels` filled in, as imported ones state it."""
    return config.model_copy(update={"embed_channels": config.raw_channels})


def same_latents(one: Autoencoder, other: Autoencoder) -> bool:
    """Whether both produce bitwise the same latents and quantise them identically; their decoders may differ."""
    if _explicit(one.config) != _explicit(other.config):
        return False
    others = other.state_dict()
    return all(
        torch.equal(tensor, others[name])
        for name, tensor in one.state_dict().items()
        if not name.startswith(("decoder.", "post_quant_conv."))
    )


def autoencoder_digest(autoencoder: Autoencoder) -> str:
    """Twelve hex digits that identify the weights of a first stage."""
    return weights_digest(autoencoder.state_dict())


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """`autoencoder_digest` of an autoencoder with these weights, under the names of its state dict."""
    key = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        key.update(name.encode())
        key.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return key.hexdigest()[:12]
