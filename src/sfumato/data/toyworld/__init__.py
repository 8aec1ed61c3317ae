"""A built-in synthetic world of captioned scenes, generated from a seed, and a reader that recognises image content."""
