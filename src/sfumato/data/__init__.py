"""Image folders, cached latents, the built-in toy world."""
