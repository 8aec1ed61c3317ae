"""A run as one self-contained HTML page: numbers, images, curves. Reads no run folders and trains nothing."""
