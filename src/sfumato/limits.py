"""The largest whole numbers of configurations, for their classes and for the command line; imports nothing heavy."""

from collections.abc import Mapping
from types import MappingProxyType

MOST_OTHERWISE = 10**9
MOST: Mapping[str, int] = MappingProxyType(
    {
        # what one step or one machine takes
        "accumulate": 65_536,
        "batch": 65_536,
        "first_batch": 65_536,
        "preview_images": 65_536,
        "workers": 256,
        # widths and depths of networks
        "blocks": 64,
        "blocks_per_level": 64,
        "channel_multipliers": 64,
        "channels": 16_384,
        "depth": 512,
        "dim": 65_536,
        "embed_channels": 4096,
        "head_channels": 16_384,
        "head_dim": 16_384,
        "heads": 4096,
        "image_channels": 4096,
        "latent_channels": 4096,
        "layers": 16,
        "norm_groups": 16_384,
        "pooling_head_channels": 16_384,
        "stages": 12,
        "transformer_depth": 64,
        # tables
        "bins": 10_000,
        "classes": 1_000_000,
        "codebook": 1_048_576,
        "codes": 1_048_576,
        "features": 65_536,
        "max_tokens": 65_536,
        "memory": 10_000,
        "objects": 10_000,
        "vocabulary": 10_000_000,
        # images and data
        "crop": 65_536,
        "factor": 256,
        "factors": 256,
        "image_size": 65_536,
        "length": 100_000_000,
        "images": 10_000_000,
        "most_images": 1_000_000_000,
        "samples": 10_000_000,
        "sampling_steps": 100_000,
        "seeds": 10_000,
        "size": 65_536,
        "variants": 10_000,
        # no amounts
        "parameters": 10**12,
        "seed": 2**63 - 1,
    }
)
"""The largest whole number of a field, by its name, which means the same in every configuration."""
