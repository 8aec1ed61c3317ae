"""Stage 2, the maths: imports torch and nothing of ours but the configuration base."""
