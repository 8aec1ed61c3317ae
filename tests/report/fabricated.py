"""A synthetic finished demo: real scenes replace a model's samples, so that pages can be built at once."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.data.toyworld.dataset import ToyWorldConfig
from sfumato.report.gallery import Gallery, prompts_shown
from sfumato.report.measure import DenoisingStrip, PromptSet, build_prompts, chance_row, score_row
from sfumato.report.result import DemoResult, FirstStage, LatentChannel, Machine, Sampling, Training

WORLD = ToyWorldConfig(size=64, length=64)


def blurred(images: Tensor) -> Tensor:
    """Stands in for the reconstructions of a mediocre autoencoder."""
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def wrong_now_and_then(prompt_set: PromptSet, every: int) -> Tensor:
    """The scenes, one in `every` replaced by its neighbour."""
    images = prompt_set.images.clone()
    images[::every] = prompt_set.images.roll(1, 0)[::every]
    return images


def gallery(prompt_set: PromptSet, shown: int = 4, sheet: int = 8) -> Gallery:
    samples = [wrong_now_and_then(prompt_set, every) for every in (2, 5, 3)]
    coarse = [
        F.interpolate(F.adaptive_avg_pool2d(prompt_set.images[:2], side), size=64, mode="bilinear")
        for side in (1, 2, 3, 5, 9, 16, 32, 64)
    ]
    return Gallery(
        originals=prompt_set.images,
        reconstructions=blurred(prompt_set.images),
        latent_maps=torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8).expand(4, 3, 16, 16),
        guidance=(1.0, 3.0, 6.0),
        prompts=prompts_shown(prompt_set, samples, shown),
        sheet=samples[1][shown : shown + sheet],
        sheet_captions=tuple(prompt_set.captions[shown : shown + sheet]),
        strip=DenoisingStrip(
            tuple(range(1, 9)), tuple(1 - k / 8 for k in range(8)), torch.stack(coarse), tuple(prompt_set.captions[:2])
        ),
    )


def result(prompt_set: PromptSet) -> DemoResult:
    prompts = prompt_set.prompts
    channels = tuple(LatentChannel(0.1 * c, 1.2 + c, 0.4 - c, 0.1 * c, 1 / (1.25 + c)) for c in range(4))
    return DemoResult(
        version="0.0",
        created="2024-01-02 03:04 UTC",
        quick=False,
        seconds=712.4,
        phases={"training stage 1, the autoencoder": 250.0, "training stage 2, the diffusion model": 400.0},
        machine=Machine("A processor of 2.5 GHz", 2, 2, "Linux x86_64", "3.11.2", "2.9.0"),
        autoencoder=Training("zoo:toy/autoencoder", 2500, 40_000, 245.0, 811_271),
        diffusion=Training("zoo:toy/text", 4000, 128_000, 395.0, 5_402_116),
        first_stage=FirstStage(len(prompts), 31.25, 0.9731, (3, 64, 64), (4, 16, 16), 2.31, channels),
        sampling=Sampling("dpmpp-2m", 20, 3.0, 64, 0.41, 0.083),
        facts=prompt_set.facts_by_kind(),
        generated=score_row("guidance 3", prompts, wrong_now_and_then(prompt_set, 5), 3.0),
        other_generated=(
            score_row("guidance 1", prompts, wrong_now_and_then(prompt_set, 2), 1.0),
            score_row("guidance 6", prompts, wrong_now_and_then(prompt_set, 3), 6.0),
        ),
        real=score_row("real scenes", prompts, prompt_set.images),
        reconstructed=score_row("reconstructions", prompts, blurred(prompt_set.images)),
        chance=chance_row("chance", prompt_set),
    )


def logs() -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Log lines like those of both training loops."""
    first: list[dict[str, float]] = []
    for step in range(10, 2501, 10):
        wobble = 1 + 0.2 * math.sin(step * 1.7)
        first.append({"step": step, "reconstruction": (0.04 + 0.5 * math.exp(-step / 200)) * wobble})
        if step % 100 == 0:
            first.append({"step": step, "psnr": 31 - 14 * math.exp(-step / 500), "bits_per_dimension": 2.3})
    second = [
        {
            "step": step,
            "loss": (0.2 + math.exp(-step / 300)) * (1 + 0.2 * math.sin(step * 2.3)),
            "loss_smoothed": 0.2 + math.exp(-step / 300),
        }
        for step in range(10, 4001, 10)
    ]
    return first, second


COMMANDS = [
    ("this page again", ["sfumato demo --out runs/demo"]),
    ("a model of your own images", ['sfumato sample runs/mine "a <red> & blue star" --out samples']),
]


def prompt_set(count: int = 24) -> PromptSet:
    return build_prompts(WORLD, count)
