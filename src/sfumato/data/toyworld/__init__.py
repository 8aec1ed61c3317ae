"""A built-in world of captioned scenes, generated from a seed, and a reader that reports what an image shows."""
