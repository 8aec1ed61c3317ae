"""What the kernels of group normalisation take."""

WIDEST_GROUP = 128
"""Channels of a group at most: a program of the GPU kernel holds the sums of one group at once."""
