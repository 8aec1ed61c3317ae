"""The two loops, and what they stand on: run state, optimiser, averages, log."""
