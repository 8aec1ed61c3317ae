"""Both stages at once in several couplings against one after the other, at equal total time."""
