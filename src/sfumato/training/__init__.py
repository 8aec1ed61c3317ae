"""The two loops and what they stand on."""
