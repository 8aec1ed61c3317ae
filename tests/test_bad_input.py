"""Mistakes at the command line: one clear sentence on stderr, exit code 2, no traceback, and nothing is lost."""

import errno
import re
import shutil
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any, NoReturn

import pytest
from safetensors.torch import save_file

import sfumato
from command_line import CLASS, TEXT, Command, Outcome, Runs
from data.make_images import save, truncated
from sfumato import checkpoint

Case = Callable[[Runs, Path], list[object]]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by a hash of its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): blake2b(path.read_bytes()).digest() for path in files}


def check(done: Outcome, sentence: str, notes: int = 0) -> None:
    """The outcome is a refusal with this sentence; `notes` lines of news may come before it."""
    assert done.code == 2, done
    assert "Traceback" not in done.err
    *before, last = done.err.splitlines()
    assert last.startswith("sfumato: "), done.err
    assert len(before) <= notes, done.err
    assert re.search(sentence, last), last


def sampling(name: str, *options: object) -> Case:
    def case(runs: Runs, tmp: Path) -> list[object]:
        given = [runs.autoencoder if option == "AUTOENCODER" else option for option in options]
        return ["sample", getattr(runs, name), "--steps", 2, *given, "--out", tmp / "out"]

    return case


SAMPLING: dict[str, tuple[Case, str]] = {
    "no-model": (
        lambda runs, tmp: ["sample", tmp / "none", "--out", tmp / "out"],
        "none' does not exist; give a model",
    ),
    "file-as-model": (
        lambda runs, tmp: ["sample", runs.first, "--out", tmp / "out"],
        "first.yaml' is neither a model folder nor",
    ),
    "no-checkpoint": (lambda runs, tmp: ["info", runs.first], "first.yaml is not a checkpoint"),
    "folder-without-model": (lambda runs, tmp: ["info", runs.root / "cache"], "neither a model folder nor"),
    "autoencoder-only": (sampling("autoencoder"), "autoencoder only: train a diffusion model"),
    "prompt-to-unconditional": (sampling("plain", "a cat"), "not trained with text conditioning; it is unconditional"),
    "label-to-text-model": (sampling("text", "--label", 1), "not trained with label conditioning; it takes: text"),
    "prompt-to-class-model": (sampling("label", "a cat"), "not trained with text conditioning; it takes: label"),
    "guidance-on-unconditional": (sampling("plain", "--guidance", 3), "guidance 3 requires a condition"),
    "guidance-without-dropout": (
        sampling("undropped", "a cat", "--guidance", 3),
        "guidance 3 is not possible: .* without condition dropout .*; use guidance 1",
    ),
    "no-prompt-without-dropout": (
        sampling("undropped"),
        "conditioned on text: give a prompt; .* without condition dropout",
    ),
    "negative-to-unconditional": (
        sampling("plain", "--negative", "x"),
        "negative prompt: this model was not trained with text",
    ),
    "negative-without-guidance": (
        sampling("text", "a", "--negative", "x", "--guidance", 1),
        "negative prompts act through guidance, which is off",
    ),
    "infinite-guidance": (
        sampling("text", "a", "--guidance", "inf"),
        "guidance is inf: give a number from -1000 to 1000",
    ),
    "unknown-label": (sampling("label", "--label", "plain rang"), "did you mean 'plain ring'"),
    "label-out-of-range": (sampling("label", "--label", 24), "label 24 is outside 0 to 23"),
    "unlike-counts": (
        sampling("text", "a", "b", "--label", 1, "--label", 2, "--label", 3),
        "2 prompts do not go with 3",
    ),
    "no-steps": (
        lambda runs, tmp: ["sample", runs.plain, "--steps", 0, "--out", tmp / "out"],
        "steps is 0: give a whole number from 1",
    ),
    "too-many-steps": (
        lambda runs, tmp: ["sample", runs.plain, "--steps", 1001, "--sampler", "ddim", "--out", tmp / "out"],
        "steps is 1001, but the leading grid has at most the model's 1000",
    ),
    "no-images": (sampling("plain", "-n", 0), "--count is 0: give a whole number from 1"),
    "no-batch": (sampling("plain", "--batch", 0), "batch is 0: give a whole number from 1"),
    "unknown-sampler": (sampling("plain", "--sampler", "dpmp-2m"), "is not one of .*; did you mean 'dpmpp-2m'?"),
    "unknown-grid": (sampling("plain", "--grid", "even"), "grid 'even' is not one of leading, trailing"),
    "eta-out-of-range": (
        sampling("plain", "--sampler", "ddim", "--eta", 1.5),
        "eta is 1.5: give a number from 0 to 1",
    ),
    "eta-elsewhere": (
        sampling("plain", "--eta", 1, "--sampler", "plms"),
        "does not apply to the sampler plms, only to ddim and",
    ),
    "eta-without-sampler": (
        sampling("plain", "--eta", 1),
        "eta does not apply to the sampler auto, .*: name a sampler",
    ),
    "eta-of-the-other": (
        sampling("plain", "--sampler", "dpmpp-2m-sde:eta=-1"),
        r"sampler dpmpp-2m-sde.*eta: .*greater than or equal to 0 \(got -1\)",
    ),
    "sampler-setting": (sampling("plain", "--sampler", "edm:churm=1"), "unknown key 'churm'; did you mean 'churn'"),
    "grid-setting": (sampling("plain", "--grid", "karras:rho=-1"), r"grid karras.*rho: .*greater than 0 \(got -1\)"),
    "absurd-steps": (
        lambda runs, tmp: ["sample", runs.plain, "--steps", 10**9, "--out", tmp / "out"],
        "steps is 1000000000: give a whole number from 1 to 10,000",
    ),
    "rising-times": (sampling("plain", "--times", "0.2,0.8"), "times 0.2, 0.8 must be at least two times that fall"),
    "times-outside": (sampling("plain", "--times", "1200,500"), "times: index is 1200: give a number from 0 to 999"),
    "times-and-grid": (sampling("plain", "--times", "1,0", "--grid", "karras"), "leave out grid and shift"),
    "times-in-words": (sampling("plain", "--times", "few"), "--times 'few' is not a number, or numbers with commas"),
    "rescale-out-of-range": (sampling("text", "a", "--rescale", 2), "rescale is 2: give a number from 0 to 1"),
    "apg-setting": (sampling("text", "a", "--apg", "norm=3"), "--apg 'norm=3' is not on, or one of parallel, limit"),
    "apg-twice": (sampling("text", "a", "--apg", "limit=1,limit=2"), "--apg 'limit=1,limit=2' gives limit twice"),
    "sampler-twice": (
        sampling("text", "a", "--sampler", "ddim:eta=0,eta=1"),
        "'eta' is given twice, as '0' and as '1'",
    ),
    "apg-limit": (sampling("text", "a", "--apg", "limit=0"), "--apg 'limit=0': limit is 0: give a number above 0"),
    "guidance-counts": (
        sampling("text", "a", "-n", 3, "--guidance", "1,2"),
        "2 guidance scales were given for 3 samples",
    ),
    "autoguide-autoencoder": (sampling("text", "a", "--autoguide", "AUTOENCODER"), "autoencoder only"),
    "guide-kind": (
        sampling("plain", "--image-guidance", "blue"),
        "--image-guidance 'blue' is not low-res=IMAGE, colour=IMAGE",
    ),
    "guide-file": (
        sampling("plain", "--image-guidance", "low-res=no.png"),
        "--image-guidance: 'no.png' cannot be read",
    ),
    "guide-colour": (sampling("plain", "--image-guidance", "colour=blu"), "neither an image nor a colour"),
    "guide-scale": (
        sampling("plain", "--image-guidance", "colour=blue", "--image-guidance-scale", 0),
        "--image-guidance-scale is 0: give a num",
    ),
    "strip-of-less": (sampling("plain", "--strip", -1), "--strip is -1: give a whole number from 0 to 10,000"),
    "interval-backwards": (sampling("text", "a", "--interval", "0.8,0.2"), "'0.8,0.2' is not LO,HI with 0 <= LO <= HI"),
    "interval-of-one": (sampling("text", "a", "--interval", "0.8"), "--interval '0.8' is not LO,HI"),
    "size-no-multiple-of-f": (sampling("plain", "--size", 30), r"30x30 .* not a multiple of f = 4.*nearest is 32x32"),
    "size-no-multiple-of-the-unet": (sampling("plain", "--size", "36x32"), "36x32 .* not a multiple of 8, the down"),
    "size-of-nothing": (sampling("plain", "--size", "0x32"), "--size '0x32' is not a size"),
    "size-in-words": (sampling("plain", "--size", "big"), "--size 'big' is not a size: give height x width"),
    "no-such-device": (sampling("plain", "--device", "abacus"), "--device 'abacus' is not available here: choose auto"),
    "no-such-precision": (sampling("plain", "--precision", "half"), "'half' is not one of auto, float32, bfloat16"),
    "huge-seed": (sampling("plain", "--seed", 10**30), r"--seed is about 10\^30: give a whole number"),
    "no-prompt-file": (sampling("text", "--prompts", "none.txt"), "--prompts 'none.txt' cannot be read: No such file"),
    "out-is-a-file": (
        lambda runs, tmp: ["sample", runs.plain, "--out", runs.second],
        "--out '.*second.yaml' is a file: give a folder",
    ),
    "out-below-a-file": (
        lambda runs, tmp: ["sample", runs.plain, "--out", runs.second / "out"],
        "second.yaml/out' cannot be created: Not a directory",
    ),
}


SAMPLING |= {
    "one-stop": (
        lambda runs, tmp: ["interpolate", runs.plain, "--seeds", "3", "--out", tmp / "out"],
        "there is only one stop: give two seeds",
    ),
    "unlike-stops": (
        lambda runs, tmp: ["interpolate", runs.text, "a", "b", "--seeds", "1,2,3", "--out", tmp / "out"],
        "2 prompts do not go with 3 stops",
    ),
    "seeds-in-words": (
        lambda runs, tmp: ["interpolate", runs.plain, "--seeds", "1,b", "--out", tmp / "out"],
        "--seeds '1,b' is not whole numbers",
    ),
    "no-image-to-invert": (
        lambda runs, tmp: ["invert", runs.plain, tmp / "no.png", "--out", tmp / "out"],
        "image '.*no.png' cannot be read",
    ),
    "negative-refinements": (
        lambda runs, tmp: ["invert", runs.plain, tmp / "no.png", "--refinements", -1, "--out", tmp / "out"],
        "--refinements is -1: give a whole number from 0",
    ),
}


@pytest.mark.parametrize("name", SAMPLING)
def test_sampling(command: Command, runs: Runs, tmp_path: Path, name: str) -> None:
    case, sentence = SAMPLING[name]
    before = contents(runs.root)
    check(command(*case(runs, tmp_path)), sentence)
    assert contents(runs.root) == before
    assert not list(tmp_path.rglob("*.png"))


def test_images_that_are_there_survive_a_mistake(command: Command, runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "0000.png").write_bytes(b"mine")
    (tmp_path / "grid.png").write_bytes(b"mine too")
    check(command("sample", runs.plain, "--guidance", 3, "--out", tmp_path), "guidance 3 requires a condition")
    assert command("sample", runs.plain, "-n", 1, "--steps", 1, "--out", tmp_path).code == 0
    assert (tmp_path / "0000.png").read_bytes() == b"mine"
    assert (tmp_path / "grid.png").read_bytes() == b"mine too"
    assert (tmp_path / "0001.png").exists()


# ---- reconstruct


def test_reconstructing_nothing(command: Command, runs: Runs, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    check(command("reconstruct", runs.autoencoder, tmp_path / "none", *out), "none' does not exist: give an image or")
    (tmp_path / "empty").mkdir()
    check(command("reconstruct", runs.autoencoder, tmp_path / "empty", *out), "empty' holds no images: expected files")
    (tmp_path / "bad").mkdir()
    truncated(tmp_path / "bad" / "a.png")
    (tmp_path / "bad" / "b.jpg").write_bytes(b"no image")
    check(
        command("reconstruct", runs.autoencoder, tmp_path / "bad", *out),
        "none of the 2 images in '.*bad' can be read: image file is truncated",
    )
    check(
        command("reconstruct", runs.autoencoder, tmp_path / "bad" / "b.jpg", *out),
        "b.jpg' cannot be read: it is not an image of a known format",
    )
    save(tmp_path / "good", ["a.png"])
    check(
        command("reconstruct", runs.autoencoder, tmp_path / "good", "--size", 30, *out),
        "30x30 .* not a multiple of f = 4",
    )
    check(command("reconstruct", runs.autoencoder, tmp_path / "good", "--background", "x", *out), "'x' is not a colour")
    check(command("reconstruct", runs.autoencoder, tmp_path / "good", "--out", runs.first), "is a file: give a folder")
    assert not list((tmp_path / "out").rglob("*.*"))


# ---- training


def first_stage(*options: object) -> Case:
    return lambda runs, tmp: ["train", "autoencoder", runs.first, "--out", tmp / "out", *options]


def second_stage(*options: object) -> Case:
    return lambda runs, tmp: [
        *("train", "diffusion", runs.second, "--autoencoder", runs.autoencoder),
        *("--cache", tmp / "cache", "--out", tmp / "out", *options),
    ]


TRAINING: dict[str, tuple[Case, str]] = {
    "no-config": (
        lambda runs, tmp: ["train", "autoencoder", tmp / "none.yaml", "--out", tmp / "out"],
        "none.yaml' does not exist; give a YAML file or a zoo name",
    ),
    "no-zoo-config": (
        lambda runs, tmp: ["train", "autoencoder", "zoo:emoji/autoencoda", "--out", tmp / "out"],
        "is not in the zoo; did you mean 'emoji/autoencoder'",
    ),
    "no-data": (lambda runs, tmp: first_stage("--data", tmp / "none")(runs, tmp), "none does not exist: give a folder"),
    "unknown-key": (first_stage("train.stepz=3"), r"unknown key 'train.stepz'; did you mean 'steps'\?"),
    "unknown-key-of-a-kind": (second_stage("schedule.strt=1"), r"unknown key 'schedule.strt'; did you mean 'start'\?"),
    "no-override": (first_stage("train.steps"), "override 'train.steps' is not of the form key.sub=value"),
    "no-steps": (first_stage("train.steps=0"), r"train.steps: .*greater than or equal to 1 \(got 0\)"),
    "f-does-not-divide": (first_stage("data.size=34"), "34x34 is not a multiple of f = 4, which model.channel_mult"),
    "no-autoencoder": (
        lambda runs, tmp: ["train", "diffusion", runs.second, "--autoencoder", tmp / "no", "--out", tmp / "out"],
        "no' does not exist; give a model folder",
    ),
    "out-is-a-file": (
        lambda runs, tmp: ["train", "autoencoder", runs.first, "--out", runs.second],
        "second.yaml' is a file: give the folder of a new or an interrupted run",
    ),
    "out-below-a-file": (
        lambda runs, tmp: ["train", "autoencoder", runs.first, "--out", runs.second / "out"],
        "a part of that path is a file: choose another folder",
    ),
    "another-configuration": (
        lambda runs, tmp: ["train", "autoencoder", runs.first, "--out", runs.autoencoder, "model.latent_channels=3"],
        "holds a run with model.latent_channels = 4, not 3; give the same configuration",
    ),
    "fewer-steps-than-done": (
        lambda runs, tmp: ["train", "autoencoder", runs.first, "--out", runs.autoencoder, "train.steps=1"],
        "train.steps is 1, but the run in '.*autoencoder' has done 2 already: give at least as many",
    ),
}


@pytest.mark.parametrize("name", TRAINING)
def test_training(command: Command, runs: Runs, tmp_path: Path, name: str) -> None:
    case, sentence = TRAINING[name]
    before = contents(runs.root)
    check(command(*case(runs, tmp_path)), sentence)
    assert contents(runs.root) == before


def folder_config(tmp: Path) -> Path:
    path = tmp / "folder.yaml"
    path.write_text(
        "model: {channels: 32, channel_multipliers: [1, 1, 1], blocks_per_level: 1, attention: none}\n"
        "data: {kind: folder, size: 32}\n"
        "loss: {perceptual: {kind: none}, adversarial: {weight: 0}}\n"
        "train: {steps: 1, batch: 2, workers: 0, preview_images: 2}\n"
    )
    return path


def test_training_on_what_cannot_be_read(command: Command, tmp_path: Path) -> None:
    def train(data: Path) -> Outcome:
        return command("train", "autoencoder", folder_config(tmp_path), "--data", data, "--out", tmp_path / "out")

    check(
        command("train", "autoencoder", folder_config(tmp_path), "--out", tmp_path / "out"), "--data is missing: give"
    )
    (tmp_path / "empty").mkdir()
    check(train(tmp_path / "empty"), "empty holds no images: expected files such as")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "a.png").write_text("no image")
    check(train(tmp_path / "foreign"), "no image in .*foreign can be read: the first, a.png, fails with")
    (tmp_path / "cut").mkdir()
    truncated(tmp_path / "cut" / "a.png")
    check(train(tmp_path / "cut"), "no image in .*cut can be read: the first, a.png, fails with: image file")
    save(tmp_path / "mixed", ["a.png", "b.png", "c.png"], 32, 32)
    truncated(tmp_path / "mixed" / "d.png")
    assert train(tmp_path / "mixed").code == 0, "an earlier mistake does not claim the run's folder"


def test_captions_and_labels_that_are_not_there(command: Command, runs: Runs, tmp_path: Path) -> None:
    save(tmp_path / "bare", ["a.png", "b.png", "c.png"], 32, 32)
    config = tmp_path / "second.yaml"
    config.write_text(runs.second.read_text().replace("data: {kind: toy, length: 64}", "data: {kind: folder}"))
    common = ("train", "diffusion", config, "--autoencoder", runs.autoencoder, "--data", tmp_path / "bare")
    check(command(*common, "--out", tmp_path / "text", TEXT), "the images have no captions, .*: add .txt", notes=2)
    check(command(*common, "--out", tmp_path / "label", CLASS), "the images have no labels", notes=2)


# ---- damage and a full disk


def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / run.name))


def test_a_truncated_model(command: Command, runs: Runs, tmp_path: Path) -> None:
    run = copied(runs.text, tmp_path)
    weights = run / "model" / "denoiser.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    sentence = r"denoiser.safetensors' is not a readable safetensors file .*; was the download complete\?"
    check(command("info", run), sentence)
    check(command("sample", run, "a", "--out", tmp_path / "out"), sentence)
    weights.unlink()
    check(command("info", run), "denoiser.safetensors' does not exist")


def test_a_model_of_another_configuration(command: Command, runs: Runs, tmp_path: Path) -> None:
    run = copied(runs.plain, tmp_path)
    file = run / "model" / "config.yaml"
    whole = file.read_text()
    file.write_text(whole.replace("latent_channels: 4", "latent_channels: 6"))
    check(command("info", run), r"autoencoder.safetensors: key '.*' has shape .*, the configuration asks for")
    file.write_text(whole + "colour: red\n")
    check(command("info", run), "unknown key 'colour'; known keys: about, autoencoder, classes")


def full(*arguments: Any, **options: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_loses_no_run(
    command: Command, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(runs.text, tmp_path)
    go_on = (
        *("train", "diffusion", runs.second, "--autoencoder", runs.autoencoder, "--cache", runs.root / "cache"),
        *("--out", run, TEXT, "train.steps=6"),
    )
    before = contents(run)

    def half(tensors: Any, path: Path, **options: Any) -> None:
        save_file(tensors, path, **options)
        path.write_bytes(path.read_bytes()[:100])
        full()

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", half)
        check(command(*go_on), "the disk is full: '.*' could not be written; free some space and run", notes=4)
    after = contents(run)
    kept = [name for name in before if name.startswith(("states/", "model/"))]
    assert kept
    assert {name: after.get(name) for name in kept} == {name: before[name] for name in kept}
    assert not [name for name in after if name.endswith(".part")]
    assert sfumato.load(run).config.about["diffusion"]["steps"] == 4
    assert command(*go_on).code == 0
    assert sfumato.load(run).config.about["diffusion"]["steps"] == 6


def test_a_full_disk_loses_no_image(
    command: Command, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0000.png").write_bytes(b"mine")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        done = command("sample", runs.plain, "-n", 1, "--steps", 1, "--out", tmp_path)
    check(done, "the disk is full: '.*0001.png' could not be written", notes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["0000.png"]


def test_a_disk_that_fills_anywhere_else_is_reported(
    command: Command, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfumato.training.log.RunLog.record", full)
    done = command("train", "autoencoder", runs.first, "--out", tmp_path / "out")
    check(done, "No space left on device; free some space and run the same command again", notes=4)
