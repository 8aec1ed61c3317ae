"""Building blocks, independent of diffusion."""
