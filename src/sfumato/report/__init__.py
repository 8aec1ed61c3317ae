"""A run as one self-contained HTML page: numbers, pictures, curves. Knows no run folders and trains nothing."""
