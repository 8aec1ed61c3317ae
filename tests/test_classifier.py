"""A classifier of noisy latents: training that resumes, what it learns, what it refuses, where it leads samples."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from command_line import Command, Runs, facts_of
from runs import FIRST_STAGE, Hooks, Images, assert_same_tensors, first_model, interrupt, latents_of, logged, saved
from sfumato.classifier import LatentClassifier, build_classifier, described, load_classifier
from sfumato.conditioning.condition import ConditionSpec
from sfumato.config import apply_overrides, parse
from sfumato.data.dataset import Example
from sfumato.denoiser.classifier import ClassifierConfig, NoisyClassifier
from sfumato.denoiser.unet import UNet, UNetConfig
from sfumato.diffusion.schedule import ScaledLinearConfig
from sfumato.errors import UserError
from sfumato.model import pixel_space
from sfumato.sampling.guidance import toward
from sfumato.training.classifier import ClassifierRun, HeldOutAccuracy, initial_classifier, train_classifier
from sfumato.training.encode import cached_latents
from sfumato.training.run import RunFolder
from sfumato.training.state import TrainState

ENCODER = UNetConfig(channels=16, channel_multipliers=(1, 2), blocks_per_level=1, norm_groups=8, head_channels=16)
SMALL = ClassifierConfig(encoder=ENCODER, pooling_head_channels=16)
TRAIN = {k: v for k, v in FIRST_STAGE["train"].items() if k not in ("discriminator", "preview_images")}
CONFIG: dict[str, Any] = {
    "classifier": SMALL.model_dump(),
    "schedule": {"kind": "scaled-linear"},
    "data": {"kind": "folder", "path": "images", "size": 16},
    "train": {**TRAIN, "batch": 4, "accumulate": 2},
}


def run_of(*overrides: str) -> ClassifierRun:
    return parse(apply_overrides(CONFIG, overrides), ClassifierRun, "classifier")


def train(path: Path, cache: Path, config: ClassifierRun, hooks: Hooks | None = None) -> TrainState:
    hooks = hooks or Hooks()
    torch.seed()
    first = first_model()
    latents = latents_of(first, cache)
    made, scaling = initial_classifier(config, first, latents)
    folder = RunFolder(path)
    folder.claim(config)
    return train_classifier(config, made, first.autoencoder, scaling, latents, folder, hooks.preview, hooks.export)


def tiny_classifier(classes: int = 3, channels: int = 2) -> LatentClassifier:
    """An untrained classifier without a zero weight, of latents of two channels."""
    torch.manual_seed(0)
    first = first_model()
    about = described(SMALL, first, first.scaling, ScaledLinearConfig(), classes, None)
    made = build_classifier(about.model_copy(update={"latent_channels": channels}))
    for parameter in made.network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return replace(made, network=made.network.eval().requires_grad_(False))


def test_an_interrupted_run_is_the_straight_one(tmp_path: Path) -> None:
    straight = run_of("train.steps=4")
    train(tmp_path / "straight", tmp_path / "cache", straight)
    assert train(tmp_path / "broken", tmp_path / "cache", straight, Hooks({1: interrupt})).step == 2
    train(tmp_path / "broken", tmp_path / "cache", straight)
    one, other = saved(tmp_path / "straight"), saved(tmp_path / "broken")
    assert_same_tensors(one[0], other[0])
    assert one[1] == other[1]
    assert logged(tmp_path / "straight") == logged(tmp_path / "broken")


def test_it_is_the_lower_half_of_the_denoiser() -> None:
    whole, half = UNet(ENCODER, 3, ConditionSpec()), NoisyClassifier(SMALL, 3, 5)
    names = {name for name, _ in half.named_parameters() if not name.startswith("out.")}
    assert names == {n for n, _ in whole.named_parameters() if n.startswith(("time_embed", "input_", "middle_"))}
    network = tiny_classifier(5, 3).network
    x, t = torch.randn(2, 3, 8, 12), torch.tensor([3.0, 700.0])
    assert network(x, t).shape == (2, 5)
    assert not torch.allclose(network(x, t), network(x, t.flip(0))), "it hears how noisy the latent is"
    with pytest.raises(ValueError, match="pooling_head_channels 20 does not divide the 32 channels"):
        NoisyClassifier(SMALL.model_copy(update={"pooling_head_channels": 20}), 3, 5)


def test_log_likelihoods_are_those_of_a_distribution_and_guide_as_the_formula_says() -> None:
    made = tiny_classifier()
    x, t = torch.randn(2, 2, 8, 8), torch.tensor(0.4, dtype=torch.float64)
    likelihoods = torch.stack([made.log_likelihood(label)(x, t) for label in range(3)])
    torch.testing.assert_close(likelihoods.exp().sum(0), torch.ones(2))
    torch.testing.assert_close(made.log_likelihood(torch.tensor([2, 0]))(x, t), likelihoods[[2, 0], [0, 1]])
    leaf = x.clone().requires_grad_(True)
    made.log_likelihood(1)(leaf, t).sum().backward()
    alpha, sigma = (float(v) for v in made.schedule(t))
    assert leaf.grad is not None
    with torch.no_grad():
        guidance = made.guide(1, 2.5)
        led = toward(lambda x_t, t: 0.5 * x_t, made.schedule, guidance.log_likelihood, guidance.scale, "noisy")(x, t)
    torch.testing.assert_close(led, 0.5 * x + 2.5 * sigma**2 / alpha * leaf.grad)
    step = 1e-2 * leaf.grad / leaf.grad.norm()
    assert (made.log_likelihood(1)(x + step, t) > made.log_likelihood(1)(x, t)).all()


def test_it_learns_which_class_a_noisy_latent_is_of(tmp_path: Path) -> None:
    """In pixel space, where the images of a class share a colour, a few steps are enough."""
    config = run_of(
        "train={steps: 60, batch: 8, accumulate: 1, log_every: 60, preview_every: 60, save_every: 60, ema_decay: 0.8}",
        "train.optimiser.learning_rate=3e-3",
    )
    first = pixel_space((16, 16))
    latents = cached_latents(first, Coloured(), tmp_path / "cache", precision="float32")
    made, scaling = initial_classifier(config, first, latents)
    folder = RunFolder(tmp_path / "run")
    folder.claim(config)
    accuracy = HeldOutAccuracy(latents, first.autoencoder, scaling, made.schedule, 99)
    before = accuracy(made.network, 0)["held_out_accuracy"]

    def export(network: NoisyClassifier, state: TrainState) -> None:
        replace(made, network=network).save(folder.model)

    train_classifier(config, made, first.autoencoder, scaling, latents, folder, accuracy, export)
    again = load_classifier(tmp_path / "run")
    after = accuracy(again.network, 60)["held_out_accuracy"]
    assert isinstance(before, list)
    assert isinstance(after, list)
    assert after[0] > 0.95 > 0.8 > before[0], "nearly clean latents are classified"
    assert after[0] >= after[-1], "noise makes it harder"
    assert logged(tmp_path / "run")[-1]["held_out_accuracy"] == pytest.approx(after, abs=1e-4)


class Coloured(Images):
    """Each class a colour of its own, and a little of the image."""

    def __getitem__(self, index: int) -> Example:
        example = super().__getitem__(index)
        colour = torch.tensor([[250, 20, 20], [20, 250, 20], [20, 20, 250], [220, 220, 20]])[index % 4]
        return replace(example, image=(0.7 * colour[:, None, None] + 0.3 * example.image).to(torch.uint8))

    def fingerprint(self) -> str:
        return "coloured"


def test_data_that_cannot_be_classified_is_refused(tmp_path: Path) -> None:
    first = first_model()
    latents = latents_of(first, tmp_path)
    with pytest.raises(UserError, match="the data has 4 classes, the classifier 3"):
        initial_classifier(run_of("classifier.classes=3"), first, latents)
    made, _ = initial_classifier(run_of("classifier.classes=9"), first, latents)
    assert (made.config.classes, made.config.names) == (9, None)
    unlabelled = without_labels(first, tmp_path)
    with pytest.raises(UserError, match="a classifier needs labels, but the data has the fields text"):
        initial_classifier(run_of(), first, unlabelled)


def without_labels(first: sfumato.LatentDiffusion, cache: Path) -> Any:
    class Unlabelled(Images):
        def __getitem__(self, index: int) -> Any:
            example = super().__getitem__(index)
            return replace(example, fields={"text": example.fields["text"]})

        def fingerprint(self) -> str:
            return "unlabelled"

    return cached_latents(first, Unlabelled(fields=("text",), classes=None), cache, precision="float32")


# ---- the commands


def test_a_classifier_leads_samples(command: Command, runs: Runs, tmp_path: Path) -> None:
    config = tmp_path / "classifier.yaml"
    config.write_text(
        "classifier: {encoder: {channels: 16, channel_multipliers: [1, 2], blocks_per_level: 1, norm_groups: 8, "
        "head_channels: 16}, pooling_head_channels: 16}\n"
        "schedule: {kind: scaled-linear}\ndata: {kind: toy, length: 64}\n"
        "train: {steps: 2, batch: 4, workers: 0, precision: float32, preview_images: 8}\n"
    )
    run = tmp_path / "run"
    done = command("train", "classifier", config, "--autoencoder", runs.autoencoder, "--out", run,
                   "--cache", runs.root / "cache")  # fmt: skip
    assert done.code == 0, done.err
    made = load_classifier(run)
    assert made.config.names is not None
    names = made.config.names

    def sampled(*options: object) -> tuple[Any, dict[str, str]]:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        done = command("sample", runs.plain, "-n", 1, "--steps", 3, "--precision", "float32", "--out", out, *options)
        assert done.code == 0, done.err
        image = Image.open(out / "0000.png")
        return torch.from_numpy(np.array(image)).float(), facts_of(out / "0000.png")

    plain, _ = sampled()
    off, _ = sampled("--class", names[1], "--classifier", run, "--classifier-scale", 0)
    led, facts = sampled("--class", names[1], "--classifier", run, "--classifier-scale", 300)
    assert (plain - off).abs().max() <= 1
    assert (plain - led).abs().max() > 3
    assert (facts["class"], facts["classifier scale"]) == (names[1], "300.0")

    def refused(*options: object) -> str:
        return command("sample", runs.plain, "--out", tmp_path / "none", *options).err

    assert "--class and --classifier go together" in refused("--class", 1)
    assert "pass it to `sfumato sample` as --classifier" in command("sample", run, "--out", tmp_path / "none").err
    facts = json.loads(command("info", run, "--json").out)
    assert facts["classes"] == list(names)
    assert facts["parameters"]["classifier"] > 0
    assert "contains no classifier.safetensors" in refused("--class", 1, "--classifier", runs.plain)
    assert "class 99 is outside 0 to" in refused("--class", 99, "--classifier", run)
    assert "is not one of the classifier's" in refused("--class", names[1] + "x", "--classifier", run)
    assert "--classifier-scale is nan: give a number" in refused(
        "--class", 1, "--classifier", run, "--classifier-scale", "nan"
    )


def test_a_model_of_other_latents_is_refused(runs: Runs) -> None:
    model = sfumato.load(runs.plain)
    assert model.second is not None
    mine = described(SMALL, model, model.scaling, ScaledLinearConfig(), 3, None)
    build_classifier(mine).check_fits(model)
    for changed, message in (
        ({"schedule": ScaledLinearConfig(steps=500)}, "another noise schedule"),
        ({"autoencoder": "0" * 12}, "another autoencoder"),
        ({"scale": tuple(1.1 * s for s in mine.scale)}, "scaled differently"),
        ({"shift": tuple(s + 0.2 / k for s, k in zip(mine.shift, mine.scale, strict=True))}, "scaled differently"),
    ):
        with pytest.raises(UserError, match=message):
            build_classifier(mine.model_copy(update=changed)).check_fits(model)
    with pytest.raises(UserError, match="autoencoder only"):
        build_classifier(mine).check_fits(sfumato.load(runs.autoencoder))
