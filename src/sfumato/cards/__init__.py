"""Cards: what was measured, of what, against what and how, so that two results can be compared or refused."""
