"""Refused commands leave nothing behind, and places where no folder can be."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from command_line import CLASS, Command, Runs, check, contents
from sfumato import checkpoint
from sfumato.cli import app
from sfumato.errors import UserError
from sfumato.outputs import check_folder

RUNS = Runs(*[Path("none")] * 8)
NOWHERE = ("--data", "no-such-folder")
REFUSALS: dict[str, tuple[Callable[[Runs, Path], list[Any]], str]] = {
    "data": (lambda runs, out: ["train", "autoencoder", runs.first, *NOWHERE, "--out", out], "no-such-folder"),
    "data-of-a-list": (
        lambda runs, out: ["train", "autoencoder", runs.first, "data=[1]", "--out", out],
        "data is '[1]', not a group of settings",
    ),
    "data-of-a-text": (
        lambda runs, out: ["train", "autoencoder", runs.first, "data=toy", "--out", out],
        "data is 'toy', not a group of settings",
    ),
    "cost-data": (lambda runs, out: ["estimate", runs.first, "data=[1]"], "data is '[1]', not a group of settings"),
    "start": (lambda runs, out: ["train", "autoencoder", runs.first, "--start", "none", "--out", out], "'none' does"),
    "conditioner": (
        lambda runs, out: ["train", "diffusion", runs.second, "--autoencoder", runs.autoencoder, "--out", out,
                           "conditioner={kind: class, classes: 2, dim: 8}"],
        "set conditioner.classes=",
    ),
    "below": (
        lambda runs, out: ["train", "diffusion", runs.second, "--autoencoder", runs.autoencoder, "--out",
                           out / "deep" / "er", "conditioner={kind: class, classes: 2, dim: 8}"],
        "set conditioner.classes=",
    ),
    "classifier": (
        lambda runs, out: ["train", "classifier", runs.second, "--autoencoder", runs.autoencoder, "--out", out],
        "unknown key",
    ),
    "joint": (
        lambda runs, out: ["train", "joint", "zoo:toy/joint", "loss.adversarial={weight: 1}", "--out", out],
        "`sfumato train joint` does not support",
    ),
    "joint-denoiser": (
        lambda runs, out: ["train", "joint", "zoo:toy/joint", "denoiser.channel_multipliers=[1,1,1,1,1]", "--out", out],
        "gives latents of 8x8, not multiples of 16",
    ),
    "joint-estimate": (lambda runs, out: ["estimate", "zoo:toy/joint"], "is not forecast"),
    "transformer": (
        lambda runs, out: ["train", "transformer", runs.second, "--autoencoder", runs.autoencoder, "--out", out],
        "a transformer requires a VQ autoencoder",
    ),
    "cache": (
        lambda runs, out: ["train", "autoencoder", runs.first, "--cache", runs.first, "--out", out],
        "--cache '",
    ),
    "cache-of-evaluate": (
        lambda runs, out: ["evaluate", runs.plain, "toy", "--n", 2, "--metrics", "psnr", "--out", out],
        "psnr",
    ),
    "sample": (lambda runs, out: ["sample", runs.plain, "a cat", "--out", out], "not trained with text"),
    "sample-model": (lambda runs, out: ["sample", "none", "--out", out], "'none' does not exist"),
    "sample-below": (lambda runs, out: ["sample", runs.plain, "a cat", "--out", out / "a" / "b"], "not trained with"),
    "sample-codes": (lambda runs, out: ["sample", runs.plain, "--top-k", 3, "--out", out], "--top-k is an option of"),
    "inpaint": (lambda runs, out: ["inpaint", runs.plain, "no.png", "no.png", "--out", out], "no.png"),
    "edit": (lambda runs, out: ["edit", runs.text, "no.png", "a", "--out", out], "no.png"),
    "outpaint": (lambda runs, out: ["outpaint", runs.plain, "no.png", "--extend", "8,0,8,0", "--out", out], "no.png"),
    "upscale": (lambda runs, out: ["upscale", runs.plain, "no.png", "--out", out], "no.png"),
    "paint": (lambda runs, out: ["semantic-to-image", runs.plain, "no.png", "--out", out], "no.png"),
    "compose": (lambda runs, out: ["layout-to-image", runs.plain, "no.json", "--out", out], "no.json"),
    "reconstruct": (lambda runs, out: ["reconstruct", runs.plain, "none", "--out", out], "'none' does not exist"),
    "interpolate": (lambda runs, out: ["interpolate", "none", "--out", out], "'none' does not exist"),
    "invert": (lambda runs, out: ["invert", runs.plain, "no.png", "--out", out], "no.png"),
    "evaluate": (lambda runs, out: ["evaluate", "none", "toy", "--out", out], "none"),
    "evaluate-autoencoder": (
        lambda runs, out: ["evaluate-autoencoder", runs.autoencoder, "none", "--features", "none", "--out", out],
        "none",
    ),
    "average": (lambda runs, out: ["ema", runs.text, "--width", 0.1, "--out", out], "holds no snapshots"),
    "replace-decoder": (
        lambda runs, out: ["replace-decoder", runs.plain, "none", "--out", out],
        "'none' does not exist",
    ),
    "quantize": (lambda runs, out: ["quantize", "none", "--out", out], "'none' does not exist"),
    "import": (lambda runs, out: ["import", runs.first, out], "first.yaml"),
    "distill-decoder": (lambda runs, out: ["distill-decoder", runs.plain, *NOWHERE, "--out", out], "no-such"),
    "study": (
        lambda runs, out: ["study", "downsampling", "--data", "no-such-folder", "--budget", "1s", "--out", out],
        "no-such-folder",
    ),
    "study-latents": (
        lambda runs, out: ["study", "latents", "--data", "no-such-folder", "--out", out],
        "no-such-folder",
    ),
    "study-joint": (
        lambda runs, out: ["study", "joint", "zoo:toy/joint", "objective.latents=sample", "--out", out],
        "set objective.latents=mean",
    ),
    "data-twice": (
        lambda runs, out: ["train", "autoencoder", runs.first, "--data", "a", "data.path=b", "--out", out],
        "data.path is given twice, as --data 'a' and as 'data.path=b'",
    ),
    "start-twice": (
        lambda runs, out: ["train", "diffusion", runs.second, "--autoencoder", runs.autoencoder, "--start", runs.text,
                           "start=b", "--out", out],
        "start is given twice",
    ),
    "shard": (lambda runs, out: ["shard", "no-such-folder", "--out", out], "no-such-folder"),
    "fit-twice": (
        lambda runs, out: ["fit", runs.root, "diffusion.data.path=b", "--out", out],
        "data.path is given twice",
    ),
    "demo": (lambda runs, out: ["demo", "--device", "abacus", "--out", out], "'abacus' is not one of"),
    "fit": (lambda runs, out: ["fit", *NOWHERE[1:], "--out", out], "no-such-folder does not"),
    "fit-plan": (
        lambda runs, out: ["fit", *NOWHERE[1:], "--out", out, "--plan", out / "plan.yaml"],
        "no-such-folder does not",
    ),
    "distill": (lambda runs, out: ["distill", runs.text, *NOWHERE, "--out", out], "no-such-folder"),
    "distill-model": (lambda runs, out: ["distill", "none", "--out", out], "'none' does not exist"),
    "reproduce": (lambda runs, out: ["reproduce", runs.first, "--out", out], "first.yaml"),
    "export": (lambda runs, out: ["export", runs.text, out, "--format", "diffusers"], "cannot be exported"),
    "export-model": (lambda runs, out: ["export", "none", out, "--format", "original"], "'none' does not exist"),
    "baselines": (
        lambda runs, out: ["study", "baselines", "--data", "no-such-folder", "--budget", "1s", "--out", out],
        "no-such-folder",
    ),
    "push": (lambda runs, out: ["push", "none", "ada/apples", "--out", out], "'none' does not exist"),
    "serve": (lambda runs, out: ["serve", "none", "--out", out], "'none' does not exist"),
    "studio": (lambda runs, out: ["studio", "none", "--no-browser", "--out", out], "'none' does not exist"),
}  # fmt: skip


def _commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it."""
    for name, command in getattr(group, "commands", {}).items():
        below = (*path, name)
        yield from _commands(command, below) if hasattr(command, "commands") else [(below, command)]


def test_every_command_that_writes_is_refused_above() -> None:
    tried = {tuple(map(str, line(RUNS, Path("out"))[:2])) for line, _ in REFUSALS.values()}
    writing = [words for words, command in _commands(get_command(app)) if any(p.name == "out" for p in command.params)]
    assert len(writing) > 25
    assert [words for words in writing if not any(line[: len(words)] == words for line in tried)] == []


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_command_leaves_nothing(
    command: Command, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(runs.root)
    line, sentence = REFUSALS[name]
    check(command(*line(runs, tmp_path / "out")), sentence)
    assert contents(tmp_path) == {}
    assert contents(runs.root) == before


def test_a_refusal_leaves_a_run_as_it_was(command: Command, runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(runs.label, out)
    before = contents(tmp_path)
    line = ["train", "diffusion", runs.second, "--autoencoder", runs.autoencoder, "--out", out, CLASS]
    check(command(*line, "data.seed=3", "train.steps=8"), "holds a run with data.seed")
    check(command(*line, "data.length=63", "train.steps=8"), "holds a run with data.length")
    newest = checkpoint.newest(out / "states", print)
    assert newest is not None
    tensors, numbers = checkpoint.load_tensors(newest)
    numbers["notes"]["source"] = "2:other latents"
    checkpoint.save_tensors(newest, {name: tensor.clone() for name, tensor in tensors.items()}, numbers)
    before = contents(tmp_path)
    check(command(*line, "train.steps=8", "train.save_every=3"), "was trained on something else")
    assert contents(tmp_path) == before


PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "dangling link": (lambda tmp: _linked(tmp / "link", tmp / "nowhere"), "is a link to "),
    "long name": (lambda tmp: tmp / ("x" * 300), "cannot be created: File name too long"),
    "below a long name": (lambda tmp: tmp / ("x" * 300) / "y", "cannot be created: File name too long"),
    "proc": (lambda tmp: Path("/proc/x"), "cannot be created: "),
    "file": (lambda tmp: _touched(tmp / "file"), "is a file"),
    "below a file": (lambda tmp: _touched(tmp / "file") / "out", "cannot be created: Not a directory"),
    "device": (lambda tmp: Path("/dev/null"), "is a file"),
}


def _linked(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


def _touched(path: Path) -> Path:
    path.write_text("")
    return path


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("words", ["train", "sample", "evaluate", "average", "import", "demo", "reconstruct"])
def test_a_place_where_no_folder_can_be(command: Command, runs: Runs, tmp_path: Path, name: str, words: str) -> None:
    make, sentence = PLACES[name]
    out = make(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    line = {
        "train": ["train", "autoencoder", runs.first, "--out", out],
        "sample": ["sample", runs.plain, "--steps", 1, "--out", out],
        "evaluate": ["evaluate", runs.plain, "toy", "--n", 2, "--out", out],
        "average": ["ema", runs.plain, "--width", 0.1, "--out", out],
        "import": ["import", runs.first, out],
        "demo": ["demo", "--quick", "--out", out],
        "reconstruct": ["reconstruct", runs.plain, Path(__file__).parent, "--out", out],
    }[words]
    if words == "reconstruct":
        from PIL import Image

        Image.new("RGB", (32, 32)).save(runs.root / "one.png")
        line[2] = runs.root / "one.png"
    done = command(*line)
    check(done, sentence)
    assert len(done.err) < 600
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_cache_that_took_long_to_fill_outlives_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato import outputs

    def refused() -> None:
        with outputs.written(tmp_path / "out"):
            (tmp_path / "out" / "cache").mkdir(parents=True)
            (tmp_path / "out" / "cache" / "latents").write_text("hours")
            (tmp_path / "out" / "config.yaml").write_text("")
            raise UserError("no")

    with pytest.raises(UserError, match="no"):
        refused()
    assert contents(tmp_path) == {}
    monkeypatch.setattr(outputs, "LASTING", -1.0)
    with pytest.raises(UserError, match="no"):
        refused()
    assert list(contents(tmp_path)) == ["out", "out/cache", "out/cache/latents"]


def test_a_folder_that_another_process_begins_to_use_meanwhile_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All processes of a run check its folder at the same time."""
    mkdir = Path.mkdir

    def used_at_once(self: Path, *arguments: Any, **named: Any) -> None:
        mkdir(self, *arguments, **named)
        (self / "lock").touch()

    def already_there(self: Path, *arguments: Any, **named: Any) -> None:
        mkdir(self, *arguments, **named)
        mkdir(self)

    for place, other in (("used", used_at_once), ("there", already_there)):
        monkeypatch.setattr(Path, "mkdir", other)
        assert check_folder(tmp_path / place / "run") == tmp_path / place / "run"
        monkeypatch.undo()
    assert (tmp_path / "used" / "run" / "lock").exists()
