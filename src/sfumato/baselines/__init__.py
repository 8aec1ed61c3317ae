"""The baseline of the paper's comparison: a transformer that writes an image's codes one after the other (VQGAN)."""
