"""Averages of weights along a training: exponential and power-function EMA, and their snapshots."""
