"""A run as one self-contained HTML page: numbers, images, curves. Knows no run folders and trains nothing."""
