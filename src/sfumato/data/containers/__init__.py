"""Sets of images inside larger files: read once for an index, then each image from its place."""
