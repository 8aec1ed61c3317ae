"""Studies: several ways to spend the same budget on the same data, trained, measured, and set beside each other."""
