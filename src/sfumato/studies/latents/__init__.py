"""The study of latent spaces: which first stage, of equally good reconstructions, is easiest for stage 2."""
