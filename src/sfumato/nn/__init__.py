"""Building blocks; they have never heard of diffusion."""
