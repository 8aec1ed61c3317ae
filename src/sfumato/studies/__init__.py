"""Studies: several methods trained with the same budget on the same data, measured and compared."""
