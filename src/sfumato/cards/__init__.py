"""Cards: what was measured, on what, against what and how, so that two results can be compared or refused."""
