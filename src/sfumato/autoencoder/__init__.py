"""Stage 1: image <-> latent."""
