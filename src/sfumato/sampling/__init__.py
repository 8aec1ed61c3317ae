"""Noise -> latent, for any denoise function."""
