"""Measures a model trained on the toy world: reconstruction quality, agreement with prompts, sampling speed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.autoencoder.bottleneck import bits_per_dimension
from sfumato.autoencoder.scaling import LatentStatistics
from sfumato.data.toyworld.dataset import ToyWorld, ToyWorldConfig
from sfumato.data.toyworld.facts import Fact, Prompt, Score, prompts, score, tally
from sfumato.data.toyworld.reader import Reading, read_batch
from sfumato.data.toyworld.scene import Split
from sfumato.evaluation.image_quality import psnr, ssim
from sfumato.images import to_uint8, to_unit
from sfumato.model import LatentDiffusion
from sfumato.pipeline import pipeline
from sfumato.pipeline.request import SampleRequest
from sfumato.report.result import FirstStage, LatentChannel, ScoreRow
from sfumato.sampling.loop import Step, equally_far

BATCH = 64
SHUFFLES = 4  # other scenes with which each prompt is compared for the chance level


@dataclass(frozen=True)
class PromptSet:
    """Prompts and the real scenes they describe; images (N, 3, H, W) in [-1, 1]."""

    prompts: tuple[Prompt, ...]
    images: Tensor

    @property
    def captions(self) -> list[str]:
        """The text of the prompts."""
        return [prompt.caption for prompt in self.prompts]

    def first(self, n: int) -> "PromptSet":
        """The first n of them."""
        return PromptSet(self.prompts[:n], self.images[:n])

    def facts_by_kind(self) -> dict[str, int]:
        """Number of stated facts by kind."""
        counts: dict[str, int] = {}
        for prompt in self.prompts:
            for fact in prompt.facts:
                counts[fact.kind] = counts.get(fact.kind, 0) + 1
        return counts


def build_prompts(config: ToyWorldConfig, n: int, split: Split = "held-out") -> PromptSet:
    """The first n scenes of a split of the world that a run was trained on, and their prompts."""
    world: ToyWorld = config.model_copy(update={"split": split, "length": n, "fields": ()}).build()
    images = [to_unit(example.image) for example in world.examples(range(n))]
    return PromptSet(tuple(prompts(n, split, config.seed, config.vocabulary)), torch.stack(images))


# ---- stage 1


@torch.no_grad()
def first_stage(model: LatentDiffusion, images: Tensor) -> tuple[FirstStage, Tensor]:
    """Measures the autoencoder on images (N, 3, H, W) in [-1, 1], and returns reconstructions, clipped to [-1, 1]."""
    statistics, bits, outputs = LatentStatistics(), 0.0, []
    variational = model.autoencoder.variational
    for part in images.split(BATCH):
        encoding = model.autoencoder.encode(part.to(model.device))
        outputs.append(model.autoencoder.decode(encoding.z, quantize=False).float().clamp(-1, 1).cpu())
        statistics.update(model.autoencoder.latent_from_moments(encoding.moments))
        if variational:
            bits += bits_per_dimension(encoding.moments).item() * len(part) / len(images)
    output = torch.cat(outputs)
    _, C, H, W = images.shape
    columns = (statistics.mean(), statistics.std(), statistics.kurtosis(), model.scaling.shift, model.scaling.scale)
    numbers = FirstStage(
        images=len(images),
        psnr=psnr(output, images).mean().item(),
        ssim=ssim(output, images).mean().item(),
        image_shape=(C, H, W),
        latent_shape=model.latent_shape_of((H, W)),
        bits_per_dimension=bits if variational else None,
        channels=tuple(LatentChannel(*values) for values in zip(*(column.tolist() for column in columns), strict=True)),
    )
    return numbers, output


@torch.no_grad()
def latent_maps(model: LatentDiffusion, image: Tensor) -> Tensor:
    """The model latent of one image (3, H, W) as grey images, one per channel: uint8 (C, 3, h, w).

    Black and white are three standard deviations from the mean.
    """
    latent = model.encode(image[None])[0].float().cpu()
    return to_uint8((latent / 3).clamp(-1, 1))[:, None].expand(-1, 3, -1, -1).contiguous()


# ---- stage 2


def sample(
    model: LatentDiffusion,
    captions: Sequence[str],
    guidance: float,
    steps: int,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """One image per caption, (N, 3, H, W) on the CPU in [-1, 1]; image i has seed i at every guidance scale."""
    images = []
    for start in range(0, len(captions), BATCH):
        part = list(captions[start : start + BATCH])
        seeds = range(start, start + len(part))
        request = SampleRequest(prompt=part, guidance=guidance, steps=steps, seeds=list(seeds), batch=BATCH)
        images.append(pipeline.sample(model, request).images.clamp(-1, 1).cpu())
        if progress is not None:
            progress(start + len(part), len(captions))
    return torch.cat(images)


@dataclass(frozen=True)
class DenoisingStrip:
    """The expected clean image along the trajectory: step numbers and times (K,), images (K, N, 3, H, W)."""

    steps: tuple[int, ...]
    times: tuple[float, ...]
    images: Tensor
    captions: tuple[str, ...]


@torch.no_grad()
def denoising_strip(
    model: LatentDiffusion, captions: Sequence[str], seeds: Sequence[int], guidance: float, steps: int, shown: int
) -> DenoisingStrip:
    """Decodes the expected clean latent at the first and last step, and at points in between, equally far apart.

    At most `shown` steps, fewer if one step covers more than its share of the distance. Steps are numbered from 1.
    """
    recorded: list[Step] = []
    request = SampleRequest(
        prompt=list(captions),
        guidance=guidance,
        steps=steps,
        seeds=list(seeds),
        batch=len(captions),
        callback=recorded.append,
    )
    pipeline.sample(model, request)
    chosen = [recorded[index] for index in equally_far([step.x0 for step in recorded], shown)]
    images = [model.decode(step.x0).clamp(-1, 1).cpu() for step in chosen]
    return DenoisingStrip(
        steps=tuple(step.index + 1 for step in chosen),
        times=tuple(float(step.t) for step in chosen),
        images=torch.stack(images),
        captions=tuple(captions),
    )


def seconds_of(action: Callable[[], Tensor]) -> float:
    """Seconds until the result of an action is on the CPU."""
    t_start = time.perf_counter()
    action().cpu()
    return time.perf_counter() - t_start


# ---- the reader


def fact_scores(stated: Sequence[Prompt], images: Tensor) -> list[Score]:
    """The scores of images (N, 3, H, W) by the toy world's reader, fact by fact."""
    return _scores(stated, read_batch(images))


def score_row(name: str, stated: Sequence[Prompt], images: Tensor, guidance: float | None = None) -> ScoreRow:
    """The shares of true facts in images (N, 3, H, W) of these prompts."""
    return _row(name, len(stated), fact_scores(stated, images), guidance)


def chance_row(name: str, prompt_set: PromptSet) -> ScoreRow:
    """The chance level: the shares if each prompt is compared with the real scenes of other prompts."""
    readings, n = read_batch(prompt_set.images), len(prompt_set.prompts)
    shifts = sorted({1 + k * (n - 1) // SHUFFLES for k in range(SHUFFLES)} - {n})
    scores = [one for shift in shifts for one in _scores(prompt_set.prompts, readings[shift:] + readings[:shift])]
    return _row(name, n, scores, None)


def _scores(stated: Sequence[Prompt], readings: Sequence[Reading]) -> list[Score]:
    return [score(prompt.facts, reading) for prompt, reading in zip(stated, readings, strict=True)]


def _row(name: str, n: int, scores: Sequence[Score], guidance: float | None) -> ScoreRow:
    return ScoreRow(name=name, prompts=n, rates=tally(scores), guidance=guidance)


def fact_text(fact: Fact) -> str:
    """A fact in the words of a caption."""
    if fact.kind == "count":
        return f"{fact.value} object" + ("s" if fact.value != 1 else "")
    if fact.kind == "background":
        return f"{fact.value} background"
    return str(fact.value)
