"""Limits of the kernels of group normalisation."""

WIDEST_GROUP = 128
"""Largest number of channels of a group: a program of the GPU kernel keeps the sums of one group."""
