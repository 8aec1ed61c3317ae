"""Floating-point operations of the networks, counted by torch on the meta device: nothing is computed or allocated.

A multiplication and an addition are two operations. Convolutions, matrix products and attention are counted;
norms, activations and resampling are not: about a percent. All numbers are per sample. Counting takes a second for a
large network, and an estimate needs some counts several times: those of whole networks are remembered.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sfumato.autoencoder.discriminator import PatchDiscriminator
from sfumato.autoencoder.losses import AdversarialConfig
from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig, VQConfig
from sfumato.autoencoder.perceptual import LPIPS, EfficientNetFeatures, LPIPSConfig, NoPerceptual, PerceptualConfig
from sfumato.autoencoder.tiny import TinyDecoder, TinyDecoderConfig
from sfumato.baselines.network import CodeTransformer, CodeTransformerConfig
from sfumato.conditioning.class_label import ClassConfig
from sfumato.conditioning.condition import Condition, ConditionSpec
from sfumato.conditioning.encoder import TokenEncoder
from sfumato.conditioning.layout import LayoutConfig
from sfumato.conditioning.pretrained import PretrainedTextConfig
from sfumato.conditioning.table import CompositeConfig, ConditionerConfig
from sfumato.conditioning.text import TextConfig
from sfumato.denoiser.table import DenoiserConfig, build_denoiser
from sfumato.nn.init import without_weights

META = torch.device("meta")
REMEMBERED = 64
"""Counts of each kind."""


def forward_flops(call: Callable[[], object]) -> int:
    """Operations of a call on tensors of the meta device (or any other), without its backward pass."""
    with torch.no_grad(), META, FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def backward_flops(call: Callable[[], Tensor]) -> int:
    """Operations of the backward pass of a call's result, to the weights and inputs that require gradients."""
    with META, FlopCounterMode(display=False) as counter:
        result = call()
        forward = counter.get_total_flops()
        result.sum().backward()
        return counter.get_total_flops() - forward


@lru_cache(REMEMBERED)
def encode(config: AutoencoderConfig, size: tuple[int, int]) -> int:
    """Encoding one image of size (H, W), multiples of f; VQ with the search for the codes."""
    if config.bottleneck.kind == "pixels":
        return 0
    network, image = autoencoder(config), images(config.image_channels, size)
    h, w = (side // config.factor for side in size)
    return forward_flops(lambda: network.quant_conv(network.encoder(image))) + code_search(config, h * w)


@lru_cache(REMEMBERED)
def decode(config: AutoencoderConfig, size: tuple[int, int]) -> int:
    """Decoding one latent to an image of size (H, W), multiples of f; VQ with the search for the codes."""
    h, w = (side // config.factor for side in size)
    network, latent = autoencoder(config), images(config.raw_channels, (h, w))
    return forward_flops(lambda: network.decode(latent, quantize=False)) + code_search(config, h * w)


@lru_cache(REMEMBERED)
def decode_tiny(config: TinyDecoderConfig, size: tuple[int, int]) -> int:
    """Decoding one latent to an image of size (H, W), multiples of f, by a tiny decoder."""
    with without_weights():
        network = TinyDecoder(config)
    latent = images(config.latent_channels, (size[0] // config.factor, size[1] // config.factor))
    return forward_flops(lambda: network(latent))


def code_search(config: AutoencoderConfig, positions: int) -> int:
    """Distances of `positions` vectors to all codes, one matrix product; 0 without a codebook."""
    if not isinstance(config.bottleneck, VQConfig):
        return 0
    return 2 * positions * config.raw_channels * config.bottleneck.codes


@lru_cache(REMEMBERED)
def denoise(
    config: DenoiserConfig, latent_channels: int, spec: ConditionSpec, latent: tuple[int, int], tokens: int = 0
) -> int:
    """One call of the denoiser on a latent of size (h, w), with the given number of condition tokens."""
    with without_weights():
        network = build_denoiser(config, latent_channels, spec)
    with META:
        x_t, timestep = images(latent_channels, latent), torch.ones(1, 3) if config.flow_map else torch.zeros(1)
        condition = Condition(
            vector=None if spec.vector_dim is None else torch.empty(1, spec.vector_dim),
            tokens=None if spec.token_dim is None else torch.empty(1, tokens, spec.token_dim),
            spatial=images(spec.spatial_channels, latent) if spec.spatial_channels else None,
        )
    return forward_flops(lambda: network(x_t, timestep, condition))


def code_transformer(config: CodeTransformerConfig, codes: int, positions: int) -> int:
    """The transformer's logits of `positions` codes in one pass, as in training, without a condition prefix."""
    with without_weights():
        network = CodeTransformer(config, codes, (positions, 1), ConditionSpec())
    with META:
        written = torch.zeros(1, positions, dtype=torch.long)
    return forward_flops(lambda: network(Condition(), written))


def condition(config: ConditionerConfig) -> int:
    """One sample's condition; pretrained encoders are frozen and not counted, tables and rescaling are free."""
    if isinstance(config, CompositeConfig):
        return sum(condition(part) for part in config.parts.values())
    if not isinstance(config, TextConfig | LayoutConfig):
        return 0
    length = condition_tokens(config)
    with without_weights():
        network = TokenEncoder(config.vocabulary, config.dim, config.depth, config.heads, config.head_dim, length)
    with META:
        ids = torch.zeros(1, length, dtype=torch.long)
    return forward_flops(lambda: network(ids))


def condition_tokens(config: ConditionerConfig) -> int:
    """The number of tokens of a condition; 0 where it is only known at run time, or there are none."""
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
    """The discriminator's logits of one image of size (H, W)."""
    network, image = discriminator(config, image_channels), images(image_channels, size)
    return forward_flops(lambda: network(image))


def perceptual_features(config: PerceptualConfig, size: tuple[int, int]) -> int:
    """One image's features in the perceptual distance. Raises UserError where the package with the network is not
    installed."""
    if isinstance(config, NoPerceptual):
        return 0
    network, image = perceptual_network(config), images(3, size)
    return forward_flops(lambda: network(image))


# ---- the networks on the meta device


def images(channels: int, size: tuple[int, int]) -> Tensor:
    """One image or latent (1, C, H, W) without content."""
    return torch.empty(1, channels, *size, device=META)


def autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """Without weights."""
    with without_weights():
        return Autoencoder(config).eval()


def discriminator(config: AdversarialConfig, image_channels: int) -> PatchDiscriminator:
    """Without weights."""
    with without_weights():
        return PatchDiscriminator(image_channels, config.channels, config.layers, config.norm).eval()


def perceptual_network(config: PerceptualConfig) -> nn.Module | Callable[[Tensor], object]:
    """The features of a perceptual distance, without weights."""
    if isinstance(config, LPIPSConfig):
        with without_weights():
            return LPIPS().features
    return EfficientNetFeatures().to(META).net
