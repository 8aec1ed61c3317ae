"""The baseline of the paper's comparison: a transformer that generates an image's codes one after the other (VQGAN)."""
