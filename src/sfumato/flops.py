"""What a network's forward pass costs, from its configuration alone: floating-point operations of one sample.

Counted are the convolutions, linear maps, matrix products of attention and the codebook search, a multiplication and
an addition as two; norms, activations and resampling are left out, a percent or so. Text lengths that are only known
at run time are the caller's to give. `sfumato.cost` adds the backward passes.
"""

from collections.abc import Sequence
from itertools import pairwise

from sfumato.autoencoder.convnet import AttentionKind
from sfumato.autoencoder.losses import AdversarialConfig
from sfumato.autoencoder.model import AutoencoderConfig, VQConfig
from sfumato.autoencoder.perceptual import EfficientNetConfig, LPIPSConfig, PerceptualConfig
from sfumato.autoencoder.tiny import TinyDecoderConfig
from sfumato.autoregressive.network import CodeTransformerConfig
from sfumato.conditioning.class_label import ClassConfig
from sfumato.conditioning.condition import ConditionSpec
from sfumato.conditioning.layout import LayoutConfig
from sfumato.conditioning.pretrained import PretrainedTextConfig
from sfumato.conditioning.table import CompositeConfig, ConditionerConfig
from sfumato.conditioning.text import TextConfig
from sfumato.denoiser.unet import UNetConfig


def encode(config: AutoencoderConfig, size: tuple[int, int]) -> int:
    """Of encoding one image of size (H, W), multiples of f."""
    if config.bottleneck.kind == "pixels":
        return 0
    H, W = size
    widths = [config.channels * m for m in config.channel_multipliers]
    total, channels = conv(H, W, config.image_channels, config.channels), config.channels
    for level, width in enumerate(widths):
        h, w = H >> level, W >> level
        attends = level in config.attention_levels
        total += _level(h, w, channels, width, config.blocks_per_level, config.attention if attends else "none")
        channels = width
        if level < len(widths) - 1:
            total += conv(h // 2, w // 2, width, width)
    h, w, out = H // config.factor, W // config.factor, _moments(config) * config.latent_channels
    total += _middle(h, w, channels, config.attention) + conv(h, w, channels, out)
    total += conv(h, w, out, _moments(config) * config.raw_channels, 1)
    return total + search(config, h * w)


def decode(config: AutoencoderConfig, size: tuple[int, int]) -> int:
    """Of decoding one latent to an image of size (H, W), multiples of f; VQ with the search for the codes."""
    if config.bottleneck.kind == "pixels":
        return 0
    H, W = size
    h, w = H // config.factor, W // config.factor
    widths = [config.channels * m for m in config.channel_multipliers]
    channels = widths[-1]
    total = search(config, h * w) + conv(h, w, config.raw_channels, config.latent_channels, 1)
    total += conv(h, w, config.latent_channels, channels) + _middle(h, w, channels, config.attention)
    for level, width in reversed(list(enumerate(widths))):
        h, w = H >> level, W >> level
        attends = level in config.attention_levels
        total += _level(h, w, channels, width, config.blocks_per_level + 1, config.attention if attends else "none")
        channels = width
        if level > 0:
            total += conv(2 * h, 2 * w, width, width)
    return total + conv(H, W, channels, config.image_channels)


def preview(config: TinyDecoderConfig, size: tuple[int, int]) -> int:
    """Of decoding one latent to an image of size (H, W), multiples of f, by a tiny decoder."""
    h, w = size[0] // config.factor, size[1] // config.factor
    widths = config.widths
    total = conv(h, w, config.latent_channels, widths[0]) + 2 * config.blocks * conv(h, w, widths[0], widths[0])
    for lower, upper in pairwise(widths):
        total += conv(h, w, lower, 4 * upper)
        h, w = 2 * h, 2 * w
        total += 2 * conv(h, w, upper, upper)
    return total + conv(h, w, widths[-1], config.image_channels * min(2, config.factor) ** 2)


def denoise(
    config: UNetConfig, latent_channels: int, spec: ConditionSpec, latent: tuple[int, int], tokens: int = 0
) -> int:
    """Of one call of the U-Net on one latent of size (h, w), steered by so many tokens."""
    network = _UNet(config, spec, tokens)
    H, W = latent
    total = _linear(1, config.channels, network.embedding) + _linear(1, network.embedding, network.embedding)
    if spec.vector_dim is not None and config.vector_projection == "mlp":
        total += _linear(1, spec.vector_dim, network.embedding) + _linear(1, network.embedding, network.embedding)
    channels = config.channels
    total += conv(H, W, latent_channels + spec.spatial_channels, channels)
    skips, last = [channels], len(config.channel_multipliers) - 1
    for level, multiplier in enumerate(config.channel_multipliers):
        h, w = H >> level, W >> level
        for _ in range(config.blocks_per_level):
            total += network.block(h, w, channels, multiplier * config.channels, 2**level in config.attention_factors)
            channels = multiplier * config.channels
            skips.append(channels)
        if level < last:
            total += network.resample(h // 2, w // 2, channels)
            skips.append(channels)
    h, w = H >> last, W >> last
    total += network.block(h, w, channels, channels, True) + network.block(h, w, channels, channels, False)
    for level, multiplier in reversed(list(enumerate(config.channel_multipliers))):
        h, w = H >> level, W >> level
        for _ in range(config.blocks_per_level + 1):
            width = multiplier * config.channels
            total += network.block(h, w, channels + skips.pop(), width, 2**level in config.attention_factors)
            channels = width
        if level > 0:
            total += network.resample(2 * h, 2 * w, channels)
    return total + conv(H, W, channels, latent_channels)


def write_codes(config: CodeTransformerConfig, codes: int, positions: int) -> int:
    """Of the transformer's logits of so many codes at once, as it trains, without a condition before them."""
    d, T = config.dim, positions
    attention = _linear(T, d, 3 * d) + _attend(T, T, d) + _linear(T, d, d)
    gated = _linear(T, d, 8 * d) + _linear(T, 4 * d, d)
    return config.depth * (attention + gated) + _linear(T, d, codes)


def condition(config: ConditionerConfig) -> int:
    """Of one sample's condition; pretrained encoders are frozen and left out, tables and rescaling cost nothing."""
    if isinstance(config, CompositeConfig):
        return sum(condition(part) for part in config.parts.values())
    if not isinstance(config, TextConfig | LayoutConfig):
        return 0
    M, inner = condition_tokens(config), config.heads * config.head_dim
    attention = 3 * _linear(M, config.dim, inner) + _attend(M, M, inner) + _linear(M, inner, config.dim)
    return config.depth * (attention + 2 * _linear(M, config.dim, 4 * config.dim))


def condition_tokens(config: ConditionerConfig) -> int:
    """How many tokens a condition has; 0 where that is only known at run time, or there are none."""
    match config:
        case CompositeConfig():
            return sum(condition_tokens(part) for part in config.parts.values())
        case TextConfig():
            return config.max_tokens
        case LayoutConfig():
            return config.length
        case ClassConfig():
            return int(config.output == "token")
        case PretrainedTextConfig():
            return config.max_tokens or 0
    return 0


def discriminate(config: AdversarialConfig, image_channels: int, size: tuple[int, int]) -> int:
    """Of judging one image of size (H, W)."""
    H, W = size[0] // 2, size[1] // 2
    total, width = conv(H, W, image_channels, config.channels, 4), config.channels
    for layer in range(1, config.layers + 1):
        before, width = width, config.channels * min(2**layer, 8)
        H, W = (H // 2, W // 2) if layer < config.layers else (H - 1, W - 1)
        total += conv(H, W, before, width, 4)
    return total + conv(H - 1, W - 1, width, 1, 4)


_VGG = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))
"""Channels of VGG16's convolutions, a tuple for each resolution."""
_EFFICIENTNET = ((3, 1, 16), (3, 2, 24), (3, 1, 24), (5, 2, 40), (5, 1, 40), (3, 2, 80), (3, 1, 80), (3, 1, 80))
"""Kernel of the depthwise convolution, stride, channels out: the blocks that the distance runs."""


def perceive(config: PerceptualConfig, size: tuple[int, int]) -> int:
    """Of one image's features in the perceptual distance."""
    H, W = size
    total = 0
    if isinstance(config, LPIPSConfig):
        for level, widths in enumerate(_VGG):
            total += sum(conv(H >> level, W >> level, *pair) for pair in pairwise(widths))
    elif isinstance(config, EfficientNetConfig):
        H, W, channels = -(-H // 2), -(-W // 2), 32
        total = conv(H, W, 3, channels)
        for number, (kernel, stride, out) in enumerate(_EFFICIENTNET):
            width = channels if number == 0 else 6 * channels
            total += 0 if number == 0 else conv(H, W, channels, width, 1)
            H, W = -(-H // stride), -(-W // stride)
            total += conv(H, W, 1, width, kernel) + conv(H, W, width, out, 1)
            channels = out
    return total


class _UNet:
    """The costs of its blocks."""

    def __init__(self, config: UNetConfig, spec: ConditionSpec, tokens: int) -> None:
        self.config = config
        self.token_dim = spec.token_dim
        self.tokens = tokens
        self.embedding = 4 * config.channels

    def block(self, h: int, w: int, channels: int, out: int, attends: bool) -> int:
        """A residual block, and the attention behind it."""
        total = _residual(h, w, channels, out)
        total += _linear(1, self.embedding, 2 * out if self.config.scale_shift_norm else out)
        return total + (self._attention(h * w, out) if attends else 0)

    def resample(self, h: int, w: int, channels: int) -> int:
        """The way to the level whose size is (h, w)."""
        if self.config.resample == "residual":
            return self.block(h, w, channels, channels, False)
        return conv(h, w, channels, channels) if self.config.resample == "conv" else 0

    def _attention(self, positions: int, width: int) -> int:
        projections = 2 * _linear(positions, width, width)
        own = 3 * _linear(positions, width, width) + _attend(positions, positions, width)
        if self.token_dim is None:
            return own + _linear(positions, width, width)
        cross = _linear(positions, width, width) + 2 * _linear(self.tokens, self.token_dim, width)
        cross += _attend(positions, self.tokens, width)
        gated = _linear(positions, width, 8 * width) + _linear(positions, 4 * width, width)
        return projections + self.config.transformer_depth * (own + cross + projections + gated)


def conv(h: int, w: int, channels: int, out: int, kernel: int = 3) -> int:
    """A convolution whose result is h × w."""
    return 2 * h * w * channels * out * kernel**2


def _linear(rows: int, channels: int, out: int) -> int:
    return 2 * rows * channels * out


def _attend(queries: int, keys: int, width: int) -> int:
    """Scores and their weighted sum, all heads together `width` channels wide."""
    return 4 * queries * keys * width


def _residual(h: int, w: int, channels: int, out: int) -> int:
    skip = conv(h, w, channels, out, 1) if channels != out else 0
    return conv(h, w, channels, out) + conv(h, w, out, out) + skip


def _mid_attention(positions: int, channels: int, kind: AttentionKind) -> int:
    """The autoencoder's attention; the linear kind contracts the positions first."""
    if kind == "none":
        return 0
    mixing = _attend(positions, positions, channels) if kind == "softmax" else _attend(positions, channels, channels)
    return 4 * _linear(positions, channels, channels) + mixing


def _level(h: int, w: int, channels: int, width: int, blocks: int, attention: AttentionKind) -> int:
    widths: Sequence[int] = [channels, *[width] * (blocks - 1)]
    return sum(_residual(h, w, before, width) + _mid_attention(h * w, width, attention) for before in widths)


def _middle(h: int, w: int, channels: int, attention: AttentionKind) -> int:
    return 2 * _residual(h, w, channels, channels) + _mid_attention(h * w, channels, attention)


def _moments(config: AutoencoderConfig) -> int:
    """Numbers of the posterior for each of the latent's."""
    return 2 if config.bottleneck.kind == "kl" else 1


def search(config: AutoencoderConfig, positions: int) -> int:
    """Of finding the nearest code at so many positions; 0 without a codebook."""
    if not isinstance(config.bottleneck, VQConfig):
        return 0
    return _linear(positions, config.raw_channels, config.bottleneck.codes)
