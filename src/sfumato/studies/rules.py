"""Network sizes by rule, so that the arms of a study differ only in what is compared.

All denoisers of a study have the same number of parameters, as in the paper (section 4.1): what changes with f is the
size of their input, and so how many steps fit into the same time or compute. Equal operations per step would instead
leave pixel space with a much smaller network, and answer another question.
"""

from collections.abc import Callable

from sfumato.autoencoder.model import AutoencoderConfig, KLConfig, VQConfig
from sfumato.baselines.network import CodeTransformer, CodeTransformerConfig
from sfumato.conditioning.condition import ConditionSpec
from sfumato.denoiser.table import build_denoiser
from sfumato.denoiser.unet import UNetConfig
from sfumato.nn.init import without_weights

LATENT_CHANNELS = {2: 2, 4: 3, 8: 4, 16: 16, 32: 64}
"""Latent channels by factor, from the paper's KL models (Table 8)."""
AUTOENCODER_WIDTHS = (1, 2, 4, 4, 4, 4)
DENOISER_WIDTHS = {1: (2,), 2: (1, 2), 3: (1, 2, 2), 4: (1, 1, 2, 2)}
"""Multipliers by the number of levels."""
ATTENDED = 8
"""Levels of at most this height or width have attention."""
SMALLEST = 4
"""No level is smaller than this, unless the latent is."""
GROUP = 8
"""Channels per group of an autoencoder's norms at its first level; smaller groups lose the colours."""
GRAIN = 4
"""A denoiser's channels are a multiple of this: the number of its heads and of its norms' groups."""
HEAD = 16
"""Channels of a transformer's head; its width is a multiple."""
DEPTH = 6
"""Layers of a transformer."""


def autoencoder_for(factor: int, channels: int) -> AutoencoderConfig:
    """The first stage with downsampling factor f, a power of two from 2 to 32."""
    levels = factor.bit_length()
    return AutoencoderConfig(
        channels=channels,
        channel_multipliers=AUTOENCODER_WIDTHS[:levels],
        blocks_per_level=1,
        norm_groups=channels // GROUP,
        latent_channels=LATENT_CHANNELS[factor],
        bottleneck=KLConfig(initial_log_variance=-6.0),
    )


def codes_autoencoder_for(variational: AutoencoderConfig, codes: int) -> AutoencoderConfig:
    """The same networks with a codebook: initialised by k-means of the first latents, unused codes are revived."""
    bottleneck = VQConfig(codes=codes, legacy=False, kmeans_init=True, revive_every=100)
    return variational.model_copy(update={"bottleneck": bottleneck})


def denoiser_for(latent: tuple[int, int, int], parameters: int) -> UNetConfig:
    """The U-Net on latents (C, h, w) with approximately `parameters` parameters; its channels are a multiple of 4."""
    C, h, w = latent
    levels = 1
    while levels < len(DENOISER_WIDTHS) and h % 2**levels == w % 2**levels == 0 and min(h, w) >> levels >= SMALLEST:
        levels += 1
    factors = tuple(2**level for level in range(levels) if min(h, w) >> level <= ATTENDED)

    def of_width(channels: int) -> UNetConfig:
        return UNetConfig(
            channels=channels,
            channel_multipliers=DENOISER_WIDTHS[levels],
            blocks_per_level=1,
            attention_factors=factors,
            heads=GRAIN,
            scale_shift_norm=True,
            norm_groups=GRAIN,
        )

    return of_width(_nearest(lambda width: count(of_width(width), C), GRAIN, parameters))


def transformer_for(positions: tuple[int, int], codes: int, parameters: int) -> CodeTransformerConfig:
    """The transformer over (h, w) codes of a codebook of `codes`, with approximately `parameters` parameters."""

    def of_width(dim: int) -> CodeTransformerConfig:
        return CodeTransformerConfig(dim=dim, depth=DEPTH, head_dim=HEAD)

    def parameters_of(dim: int) -> int:
        return count_codes(of_width(dim), codes, positions)

    return of_width(_nearest(parameters_of, HEAD, parameters))


def _nearest(parameters_of: Callable[[int], int], grain: int, target: int) -> int:
    """The width, a multiple of `grain`, whose parameters come closest to the target."""
    # parameters grow almost with the square of the width: extrapolate from one known count, then try the neighbours
    known = 16 * grain
    guess = round(known * (target / parameters_of(known)) ** 0.5 / grain)
    near = [grain * max(1, guess + step) for step in range(-3, 4)]
    return min(near, key=lambda width: abs(parameters_of(width) - target))


def count(config: UNetConfig, channels: int) -> int:
    """Parameters of an unconditional denoiser on latents of `channels` channels."""
    with without_weights():
        return sum(p.numel() for p in build_denoiser(config, channels, ConditionSpec()).parameters())


def count_codes(config: CodeTransformerConfig, codes: int, positions: tuple[int, int]) -> int:
    """Parameters of an unconditional transformer over (h, w) codes of a codebook of `codes`."""
    with without_weights():
        return sum(p.numel() for p in CodeTransformer(config, codes, positions, ConditionSpec()).parameters())
