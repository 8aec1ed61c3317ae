"""An embedded world of captioned scenes, drawn from a seed, and a reader that says what an image shows."""
