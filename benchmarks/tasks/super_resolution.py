"""Small image to large image: how near to the original, how sharp, and against what else could be done."""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.regression import Regression, load_regression
from benchmarks.tasks.given import Given, reconstructed, timed
from benchmarks.tasks.result import PERCENT, THREE, TWO, Outcome, Table
from sfumato import tasks
from sfumato.autoencoder.perceptual import EfficientNetFeatures
from sfumato.data.conditions.degrade import bicubic, degrade
from sfumato.data.toyworld.facts import facts, score
from sfumato.data.toyworld.reader import read_batch
from sfumato.denoiser.table import build_denoiser
from sfumato.errors import UserError
from sfumato.evaluation.image_quality import psnr, ssim
from sfumato.images import to_pil, to_unit
from sfumato.model import LatentDiffusion
from sfumato.pipeline.parts import second_stage
from sfumato.rng import numpy_generator
from sfumato.tasks.super_resolution import enlargement

BATCH = 32


def measure(given: Given, regression: Path | None) -> Outcome:
    """Held-out images made small as in training, and enlarged again."""
    factor = enlargement(given.model)
    small = shrunk(given, factor)
    sampled, seconds = timed(
        "upscale",
        len(small),
        given.settings,
        lambda settings: tasks.upscale_each(given.model, [to_pil(image) for image in small], options=settings),
    )
    large = torch.stack([torch.from_numpy(bicubic(image.numpy(), given.size)) for image in small])
    shown = {"samples": sampled, "bicubic": large}
    notes = []
    if regression is not None:
        network = load_regression(regression, given.model.device)
        if network.config.factor != factor:
            raise UserError(f"the regression enlarges by {network.config.factor}, the model by {factor}: train another")
        shown["regression"] = network.enlarge(small)
        notes.append(compared(given.model, network))
    shown |= {"autoencoder alone": reconstructed(given), "originals": given.images}
    nearest = small.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return Outcome([quality(given, shown)], {"given": nearest, **shown}, seconds, notes=notes)


def compared(model: LatentDiffusion, network: Regression) -> str:
    """How large the two networks are, and how much the regression has seen."""
    second, about = second_stage(model), network.config.about
    assert second.conditioner is not None
    with torch.device("meta"):  # made anew: the model's own layers may be packed, which hides their parameters
        fresh = build_denoiser(second.config.denoiser, model.autoencoder.latent_channels, second.conditioner.spec)
    ours, theirs = (sum(p.numel() for p in part.parameters()) for part in (fresh, network))
    return (
        f"The denoiser has {ours / 1e6:.2f} million parameters, the regression {theirs / 1e6:.2f}; it was trained on "
        f"{about.get('images', 0):,} images, of {about.get('images', 0):,}, in {about.get('minutes', 0):g} minutes."
    )


def shrunk(given: Given, factor: int) -> Tensor:
    """The small images (N, 3, h, w) uint8, degraded as the model's were in training."""
    known = given.model.config.conditioning_metadata.low_resolution
    by = "bicubic" if known is None else known.degradation
    rngs = (numpy_generator(given.settings.seed, "benchmark", i) for i in range(len(given.images)))
    made = [degrade(image.numpy(), factor, by, rng) for image, rng in zip(given.images, rngs, strict=True)]
    return torch.stack([torch.from_numpy(image) for image in made])


def quality(given: Given, shown: dict[str, Tensor]) -> Table:
    """Each kind of image against the originals."""
    columns = {
        "PSNR dB": TWO,
        "SSIM": THREE,
        "sharpness": TWO,
        "feature distance": THREE,
    }
    if given.scenes is not None:
        columns["facts read"] = PERCENT
    network = EfficientNetFeatures().to(given.model.device)
    original = to_unit(given.images)
    rows: dict[str, tuple[float | None, ...]] = {}
    for name, images in shown.items():
        image = to_unit(images)
        same = name == "originals"
        numbers: tuple[float | None, ...] = (
            None if same else psnr(image, original).mean().item(),
            None if same else ssim(image, original).mean().item(),
            (gradient_energy(image) / gradient_energy(original)).item(),
            None if same else feature_distance(network, image, original),
        )
        if given.scenes is not None:
            numbers += (facts_read(given, images),)
        rows[name] = numbers
    return Table(
        "Against the originals; sharpness is the energy of the gradients over the originals' (1 is as sharp), the "
        "feature distance that of EfficientNet-Lite0 (0 is equal):",
        columns,
        rows,
    )


def gradient_energy(images: Tensor) -> Tensor:
    """The mean squared difference of neighbouring pixels of (N, 3, H, W)."""
    return (images.diff(dim=2).square().mean() + images.diff(dim=3).square().mean()) / 2


@torch.no_grad()
def feature_distance(network: torch.nn.Module, images: Tensor, originals: Tensor) -> float:
    """The mean perceptual distance of two batches (N, 3, H, W) in [-1, 1], as the first stage's loss has it."""
    device = next(network.parameters()).device
    pairs = zip(images.split(BATCH), originals.split(BATCH), strict=True)
    return torch.cat([network(one.to(device), other.to(device)).cpu() for one, other in pairs]).mean().item()


def facts_read(given: Given, images: Tensor) -> float:
    """The share of everything that is so in the scenes that the reader finds in the images."""
    assert given.scenes is not None
    scores = [score(facts(one), seen) for one, seen in zip(given.scenes, read_batch(images), strict=True)]
    return sum(sum(one.holds) for one in scores) / sum(len(one.facts) for one in scores)
