"""How well trained models do the paper's tasks, measured on pictures held out of their training."""
