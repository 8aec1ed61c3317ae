"""How well trained models do the paper's tasks, measured on images held out of their training."""
