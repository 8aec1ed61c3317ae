"""Text, class, layout, map, image -> Condition."""
