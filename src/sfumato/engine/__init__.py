"""Plain module -> faster module, same numbers: fused operations, packed weights, native kernels where a compiler is at hand."""
