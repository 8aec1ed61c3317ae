"""Tutorials as programs: the blocks of a page, and what their commands become at small size.

A block marked `sh` holds commands, `python` code of one session, `json` a file that the text names. Blocks of other
kinds are shown, not run. Commands are run as they stand but for the substitutions of `small`.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

PAGES = Path(__file__).parents[2] / "docs" / "tutorials"
TRAINING = (
    "train.steps=2",
    "train.minutes=null",
    "train.batch=2",
    "train.workers=0",
    "train.precision=float32",
    "train.save_every=2",
)
"""Appended to every training, after its own settings."""
FIRST = ("model.channels=16", "model.norm_groups=4", "train.preview_images=2", "loss.adversarial.weight=0")
SECOND = (
    "denoiser.channels=32",
    "denoiser.norm_groups=8",
    "denoiser.head_channels=32",
    "denoiser.channel_multipliers=[1,1]",
    "denoiser.attention_factors=[2]",
)
OPTIONS = {"-n": "1", "--n": "8", "--reference": "8", "--minutes": "1", "--samples": "8", "--budget": "2s"}
"""Values of options that make a command long."""


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(kind, text) of each fenced block."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[list[str]]:
    """The words of each command of a `sh` block."""
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def small(words: list[str]) -> list[str]:
    """The command with small networks, two steps and few samples."""
    if words[0] == "torchrun":
        start = words.index("sfumato")
        return [*words[:start], *small(words[start:])]
    if words[1] == "fit":  # its minutes decide what it plans; the steps how long it takes
        return [*words, "data.size=32", "autoencoder.train.steps=2", "diffusion.train.steps=2"]
    words = [OPTIONS.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    if words[1] == "train":
        words = [word for word in words if not word.startswith(("train.steps", "train.minutes", "data.size"))]
        return [*words, *TRAINING, *(_of_first(words) if words[2] == "autoencoder" else _of_second(words))]
    if words[1] == "estimate":
        return [*words, "train.batch=2", *_of_second(words)]
    if words[1] == "study":
        return [*words, "--parameters", "20000", "--channels", "8", "--feature-size", "32", "--length", "48"]
    if words[1] == "distill":
        minutes = words.index("--minutes")
        return [*words[:minutes], "--steps", "2", *words[minutes + 2 :], "train.batch=2", "teaching.pairs=2"]
    return words


def _of_first(words: list[str]) -> tuple[str, ...]:
    if "--start" in words:  # from the small autoencoder of the test, which has the shape of zoo:ldm/kl-f8
        return ("model.channels=32", "train.preview_images=2", "loss.adversarial.weight=0", "data.size=32")
    return (*FIRST, "data.size=32")


def _of_second(words: list[str]) -> tuple[str, ...]:
    if "--start" in words:  # its networks are those of the model it starts from
        return ("data.size=32",)
    toy = "--data" not in words
    return (*SECOND, "data.size=32", *(("data.length=16",) if toy else ()))
