"""Side-by-side timings against diffusers: same weights and inputs, one process, interleaved. `python -m benchmarks`."""
