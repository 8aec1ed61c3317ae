"""Numbers that no machine can serve are refused before the model, which is not even there, is opened."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import Command
from sfumato.pipeline import memory

HUGE = 10**12
SAMPLE: dict[str, tuple[list[object], str]] = {
    "guidance": (["--guidance", "1e40"], "--guidance is 1e+40: give a number from"),
    "guidance-each": (["-n", 2, "--guidance", "1,nan"], "--guidance is nan: give a number from"),
    "autoguide": (["--autoguide-scale", "nan"], "--autoguide-scale is nan: give a number from"),
    "apg": (["--apg", "limit=nan"], "--apg 'limit=nan': limit is nan: give a number above 0"),
    "apg-momentum": (["--apg", "momentum=inf"], "momentum is inf: give a number above -1"),
    "sampler": (["--sampler", "ddim:"], "sampler 'ddim:' lacks a setting after a colon"),
    "sampler-setting": (["--sampler", "edm:noise_scale=.inf"], "noise_scale: Input should be a finite number"),
    "grid-setting": (["--grid", "karras:rho=.nan"], "rho: Input should be a finite number"),
    "shift": (["--shift", "inf"], "--shift is inf: give a number above 0"),
    "eta": (["--sampler", "ddim", "--eta", "nan"], "--eta is nan: give a number from 0 to 1"),
    "rescale": (["--rescale", "nan"], "--rescale is nan: give a number from 0 to 1"),
    "overlap": (["--overlap", "nan"], "--overlap is nan: give a number from 0 and below 1"),
    "times": (["--times", "inf,1"], "--times is inf: give a number from 0"),
    "classifier": (["--classifier-scale", "inf"], "--classifier-scale is inf: give a number"),
    "guided": (["--image-guidance-scale", "nan"], "--image-guidance-scale is nan: give a number above 0"),
    "images": (["-n", HUGE], "--count is 1000000000000: give a whole number from 1"),
    "images-of-each": ([*"abcdefghij", "-n", 900_000], "--count is 900000: give a whole number from 1 to 90,909"),
    "batch": (["--batch", HUGE], "--batch is 1000000000000: give a whole number from 1"),
    "batch-of-large": (["-n", 900_000, "--batch", 900_000, "--size", 1024], "batch 900,000 of 1024x1024"),
    "side": (["--size", 10**9], "--size is 1000000000: give a whole number from 1 to 65,536"),
    "side-of-31-digits": (["--size", "1" * 31], "--size is about 10^30: give a whole number"),
    "side-of-5000-digits": (["--size", "1" * 5000], "an argument holds a number of 5000 digits"),
    "image": (["-n", 1, "--size", "60000x60000"], "for one image, and this machine has"),
    "steps": (["--steps", HUGE], "--steps is 1000000000000: give a whole number from 1 to 10,000"),
    "window": (["--window", HUGE], "--window is 1000000000000: give a whole number"),
    "reuse": (["--reuse", HUGE], "--reuse is 1000000000000: give a whole number"),
    "strip": (["--strip", HUGE], "--strip is 1000000000000: give a whole number from 0 to 10,000"),
    "seed": (["--seed", 2**63 - 1, "-n", 2], "the last image's seed is 9223372036854775808"),
    "memory": (["--memory", 10**20], "--memory is about 10^20: give a whole number from 1"),
}


@pytest.fixture(autouse=True)
def _a_usual_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_memory", lambda: 16 << 30)


def refused(command: Command, tmp_path: Path, words: list[object], sentence: str) -> None:
    done = command(*words, "--out", tmp_path / "out")
    assert done.code == 2, done.err
    assert sentence in done.err
    assert "Traceback" not in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", SAMPLE)
def test_sample(command: Command, tmp_path: Path, name: str) -> None:
    options, sentence = SAMPLE[name]
    refused(command, tmp_path, ["sample", tmp_path / "no-model", "a", *options], sentence)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["inpaint", "MODEL", "photo.png", "mask.png", "--feather", 10**9], "--feather is 1000000000: give a whole"),
        (["inpaint", "MODEL", "photo.png", "mask.png", "--guidance", "text=nan"], "--guidance is nan"),
        (["inpaint", "MODEL", "photo.png", "mask.png", "--jumps", f"1,{HUGE}"], "--jumps is 1000000000000"),
        (["outpaint", "MODEL", "photo.png", "--extend", "1000000000,0,0,0"], "--extend is 1000000000: give a whole"),
        (["edit", "MODEL", "photo.png", "-n", HUGE], "--count is 1000000000000"),
        (["layout-to-image", "MODEL", "boxes.json"], "size is 1000000000: give a whole number from 1 to 65,536"),
        (["interpolate", "MODEL", "--frames", HUGE], "--frames is 1000000000000: give a whole number from 2"),
        (["invert", "MODEL", "photo.png", "--guidance", "nan"], "--guidance is nan"),
        (["sample", "MODEL", "--temperature", "nan"], "--temperature is nan: give a number from 0 to 1000"),
        (["sample", "MODEL", "--top-p", 0], "--top-p is 0: give a number above 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)  # fmt: skip
def test_other_commands(command: Command, tmp_path: Path, words: list[object], sentence: str) -> None:
    Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(tmp_path / "photo.png")
    mask = np.zeros((16, 24), np.uint8)
    mask[4:8] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    boxes = {"width": 10**9, "height": 10**9, "boxes": [{"label": 1, "bbox": [0, 0, 10**9, 10**9]}]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    named = {"MODEL": tmp_path / "no-model"}
    named |= {name: tmp_path / name for name in ("photo.png", "mask.png", "boxes.json")}
    refused(command, tmp_path, [named.get(str(word), word) for word in words], sentence)


def test_what_is_within_the_ranges_comes_to_the_model(command: Command, tmp_path: Path) -> None:
    words = ["sample", tmp_path / "no-model", "a", "--guidance", 7.5, "--apg", "limit=7.5,momentum=-0.5", "--steps", 30]
    refused(command, tmp_path, words, "does not exist; give a model folder")
