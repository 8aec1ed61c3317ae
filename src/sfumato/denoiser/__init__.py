"""Stage 2, the networks: (x_t, t, Condition) -> prediction."""
