"""Conditions beside text and class, from folders or generated: maps, boxes, low-resolution images, masks."""
