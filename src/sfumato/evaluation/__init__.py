"""Metrics of images and features."""
