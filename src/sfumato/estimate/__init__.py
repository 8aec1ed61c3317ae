"""Estimates the operations, memory and time of a training run and of sampling, before they are spent."""
