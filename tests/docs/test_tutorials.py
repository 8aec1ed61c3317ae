"""Every command and every line of Python of the tutorials, run in order at small size."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tutorials import PAGES, blocks, commands, small

from command_line import Command

pytestmark = pytest.mark.docs
TUTORIALS = sorted(page.name for page in PAGES.glob("*.md") if page.name != "index.md")
TEXTS = ("a red heart", "a green ring on a navy background")


def images(folder: Path, size: int = 40) -> None:
    """Six captioned images of noise."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(random.integers(0, 255, (size, size, 3), np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(TEXTS[i % 2])


def stable_diffusion() -> None:
    """Images, and a small untrained autoencoder as Stable Diffusion's are stored."""
    images(Path("my-images"))
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    shape = {"block_out_channels": [32, 64, 128, 128], "layers_per_block": 2, "latent_channels": 4}
    network = diffusers.AutoencoderKL(**kinds, **shape, norm_num_groups=32)
    network.save_pretrained("sd-vae")


def photograph() -> None:
    images(Path("photos"))
    Image.open("photos/0.png").resize((16, 16)).save("small.jpg")


def hole() -> None:
    images(Path("my-images"))
    Image.open("my-images/0.png").save("photo.png")
    mask = Image.new("L", (40, 40))
    mask.paste(255, (8, 8, 24, 24))
    mask.save("hole.png")


PREPARED: dict[str, Callable[[], None]] = {
    "cluster.md": lambda: images(Path("my-images")),
    "inpainting.md": hole,
    "stable-diffusion-autoencoder.md": stable_diffusion,
    "super-resolution.md": photograph,
}
"""The files that a page expects its reader to have."""
ELSEWHERE = ("serving.md",)
"""Run by test_serving.py."""
FILES = {"layouts.md": "boxes.json"}
"""The file that a page's JSON is to be saved as."""


@pytest.mark.parametrize("name", [name for name in TUTORIALS if name not in ELSEWHERE])
def test_the_tutorial(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    PREPARED.get(name, lambda: None)()
    session: dict[str, object] = {"__name__": "tutorial"}
    ran = 0
    for kind, block in blocks(PAGES / name):
        if kind == "python":
            ran += 1
            exec(compile(block.replace("length=3000", "length=12"), name, "exec"), session)
        elif kind == "json":
            Path(FILES[name]).write_text(block)
        elif kind == "sh":
            for words in commands(block):
                ran += 1
                run(small(words), command)
    assert ran, "the page has nothing to run"


def run(words: list[str], command: Command) -> None:
    """One command, in this process unless a launcher starts it."""
    if words[0] == "sfumato":
        done = command(*words[1:])
        assert done.code == 0, (words, done.err)
        return
    assert words[0] == "torchrun", words
    source = str(Path(__file__).parents[2] / "src")
    launched = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
    ended = subprocess.run(
        launched, env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, (words, ended.stderr)
