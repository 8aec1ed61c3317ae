"""What a user of diffusers' parts writes for one image.

    python -m benchmarks.diffusers_image ROOT PNG STEPS DTYPE

The counterpart of `sfumato sample` in `processes`; nothing of ours is imported.
"""

import json
import sys
from pathlib import Path

import diffusers
import torch
from PIL import Image
from safetensors.torch import load_file


@torch.no_grad()
def main(root: Path, target: Path, steps: int, dtype: torch.dtype) -> None:
    """Loads the exported folder, runs DDIM from the noise beside it, and writes the image."""
    folder = root / "diffusers"
    index = json.loads((folder / "model_index.json").read_text())
    first = next(name for name in ("vae", "vqvae") if name in index)
    unet = getattr(diffusers, index["unet"][1]).from_pretrained(folder / "unet", torch_dtype=dtype)
    autoencoder = getattr(diffusers, index[first][1]).from_pretrained(folder / first, torch_dtype=dtype)
    scheduler = diffusers.DDIMScheduler.from_pretrained(
        folder / "scheduler", timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(steps)
    x_t = load_file(root / "noise.safetensors")["noise"].to(dtype)
    for t in scheduler.timesteps:
        x_t = scheduler.step(unet(x_t, t).sample, t, x_t).prev_sample
    image = autoencoder.decode(x_t / autoencoder.config.scaling_factor).sample[0]
    pixels = ((image.float() / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), getattr(torch, sys.argv[4]))
