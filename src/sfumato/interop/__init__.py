"""Original LDM / Stable Diffusion layouts, diffusers folders, the restricted reader of old checkpoints."""
