"""Plain module -> faster module, same numbers: fused operations, packed weights, native kernels if they compile."""
