"""Previews of a run: reconstructions, samples, and the metrics that go with them."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.autoencoder.bottleneck import bits_per_dimension, code_counts, codebook_usage
from sfumato.autoencoder.model import Autoencoder, VQConfig
from sfumato.autoencoder.scaling import LatentStatistics
from sfumato.baselines.model import CodeModel
from sfumato.checkpoint import write_text
from sfumato.conditioning.condition import Fields
from sfumato.data.dataset import Dataset, buckets_of
from sfumato.data.loader import sweep
from sfumato.engine.precision import Precision, autocast
from sfumato.evaluation.image_quality import psnr, ssim
from sfumato.evaluation.latent_difficulty import latent_difficulty
from sfumato.evaluation.latents import ENERGY_BEYOND, beyond, spectrum
from sfumato.images import image_grid, in_one_frame, interleave, save_png
from sfumato.model import LatentDiffusion, SecondStage
from sfumato.pipeline import pipeline
from sfumato.pipeline.latents import NotFiniteError
from sfumato.pipeline.request import DEFAULT_GUIDANCE, SampleRequest
from sfumato.training.condition_images import condition_images
from sfumato.training.conditions import preview_fields
from sfumato.training.data import RunData
from sfumato.training.diffusion import ConditionalDenoiser
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.few_steps import FewStepRun
from sfumato.training.transformer import ConditionalTransformer

Values = Mapping[str, float | list[float]]
SHOWN = 16
PREVIEW_SAMPLER = "dpmpp-2m"
PREVIEW_STEPS = 20
PREVIEW_GUIDANCE = 1.5
"""Guidance scale for models conditioned on images or boxes, which determine more than a text does."""


@dataclass(frozen=True)
class Reconstructions:
    """Writes `previews/` of an autoencoder for fixed images and measures PSNR, SSIM and latent statistics on them."""

    images: Sequence[Tensor]
    """Batches (n, 3, H, W), one for each size."""
    folder: Path
    precision: Precision = "auto"
    about: Mapping[str, bool] = field(default_factory=dict)
    """Added to each record of the log, see `RunData.about_measured`."""

    @classmethod
    def of(
        cls, dataset: Dataset, count: int, folder: Path, precision: Precision, about: Mapping[str, bool] | None = None
    ) -> "Reconstructions":
        """Reconstructs the first `count` images of a dataset."""
        rows = range(min(count, len(dataset)))
        found: dict[torch.Size, list[Tensor]] = {}
        for batch in sweep(dataset, 32, rows, unreadable=lambda row, error: None):
            found.setdefault(batch.images.shape[1:], []).append(batch.images)
        return cls([torch.cat(parts) for parts in found.values()], folder, precision, about or {})

    @torch.no_grad()
    def __call__(self, autoencoder: Autoencoder, step: int) -> Values:
        statistics = LatentStatistics()
        outputs, latents, bits, counts = [], [], [], None
        device = autoencoder.quant_conv.weight.device
        bottleneck = autoencoder.config.bottleneck
        with autocast(device, self.precision):
            for part in (part for images in self.images for part in images.split(32)):
                encoding = autoencoder.encode(part.to(device).contiguous(memory_format=torch.channels_last))
                outputs.append(autoencoder.decode(encoding.z, quantize=False).float().clamp(-1, 1).cpu())
                latents.append(autoencoder.latent_from_moments(encoding.moments).float().cpu())
                statistics.update(latents[-1])
                if isinstance(bottleneck, VQConfig) and encoding.indices is not None:
                    batch_counts = code_counts(encoding.indices, bottleneck.codes)
                    counts = batch_counts if counts is None else counts + batch_counts
                else:
                    bits.append(bits_per_dimension(encoding.moments).item())
        pairs = list(zip((part for images in self.images for part in images.split(32)), outputs, strict=True))
        shown = [(image, made) for part, output in pairs for image, made in zip(part, output, strict=True)][:SHOWN]
        sheet = image_grid(in_one_frame([image for pair in shown for image in pair]), columns=8)
        save_png(self.folder / f"reconstruction-{step:08d}.png", sheet, scale=_scale(shown[0][0]))
        values: dict[str, float | list[float]] = {
            "psnr": torch.cat([psnr(output, part) for part, output in pairs]).mean().item(),
            "ssim": torch.cat([ssim(output, part) for part, output in pairs]).mean().item(),
            "latent_mean": statistics.mean().tolist(),
            "latent_std": statistics.std().tolist(),
            **self.about,
        }
        if len(self.images) == 1 and len(self.images[0]) > 1:
            difficulty, spectra = latent_difficulty(torch.cat(latents)), spectrum(torch.cat(latents))
            values |= {"viv": difficulty.viv, "effective_rank": difficulty.effective_rank}
            values |= {f"spectral_energy_{share}": beyond(spectra, share) for share in ENERGY_BEYOND}
        if bits:
            values["bits_per_dimension"] = sum(bits) / len(bits)
        if counts is not None:
            values["held_out_codes_used"] = codebook_usage(counts).used
        return values


@dataclass(frozen=True)
class Samples:
    """Writes `previews/` of a diffusion model, with the same prompts and seeds every time."""

    model: LatentDiffusion
    folder: Path
    text: Sequence[str] | None
    label: Sequence[int] | None
    count: int = SHOWN
    precision: Precision = "auto"
    sizes: Sequence[tuple[int, int]] | None = None
    """(H, W) of each sample, where images have several."""

    @classmethod
    def of(cls, model: LatentDiffusion, data: RunData, folder: Path, precision: Precision) -> "Samples":
        """With the captions or labels of held-out examples, where the model is conditioned on them, in their sizes."""
        source = data.measured
        conditioner = model.second.conditioner if model.second else None
        reads = () if conditioner is None else conditioner.reads
        fields = [source[i].fields for i in range(min(SHOWN, len(source)))]
        text = [f["text"] for f in fields] if "text" in reads else None
        label = [int(f["label"]) for f in fields] if "label" in reads else None
        count = SHOWN if conditioner is None else len(fields)
        if text is not None:
            write_text(folder / "prompts.txt", "".join(f"{line}\n" for line in text))  # every process writes the same
        buckets = buckets_of(source)
        sizes = None if buckets is None else [buckets.of(i % len(source)) for i in range(count)]
        return cls(model, folder, text, label, count, precision, sizes)

    def __call__(self, networks: ConditionalDenoiser, step: int) -> Values:
        model = with_networks(self.model, networks)
        request = SampleRequest(prompt=self.text, label=self.label, count=self.count)
        try:
            with autocast(model.device, self.precision):
                images = sample_in_sizes(model, request, self.sizes)
        except NotFiniteError as error:
            return skipped("preview", step, error)
        sheet = image_grid(in_one_frame(images), columns=8)
        save_png(self.folder / f"samples-{step:08d}.png", sheet, scale=_scale(images[0]))
        values = torch.cat([image.flatten() for image in images])
        return {"sample_mean": values.mean().item(), "sample_std": values.std().item()}


@dataclass(frozen=True)
class CodeSamples:
    """Writes `previews/` of a transformer over codes, with the same prompts and seeds every time."""

    model: CodeModel
    folder: Path
    text: Sequence[str] | None
    label: Sequence[int] | None
    count: int = SHOWN

    @classmethod
    def of(cls, model: CodeModel, data: RunData, folder: Path) -> "CodeSamples":
        """With the captions or labels of held-out examples, where the model is conditioned on them."""
        source = data.measured
        reads = () if model.conditioner is None else model.conditioner.reads
        fields = [source[i].fields for i in range(min(SHOWN, len(source)))]
        text = [f["text"] for f in fields] if "text" in reads else None
        label = [int(f["label"]) for f in fields] if "label" in reads else None
        return cls(model, folder, text, label, len(fields) if reads else SHOWN)

    def __call__(self, networks: ConditionalTransformer, step: int) -> Values:
        model = with_code_networks(self.model, networks)
        try:
            images = model.sample_tensor(self.text, self.label, range(self.count))
        except NotFiniteError as error:
            return skipped("preview", step, error)
        save_png(self.folder / f"samples-{step:08d}.png", image_grid(images, columns=8), scale=_scale(images))
        return {"sample_mean": images.mean().item(), "sample_std": images.std().item()}


@dataclass(frozen=True)
class ConditionedSamples:
    """Writes `previews/` of a model that is conditioned on images or boxes: each row shows condition, sample,
    original."""

    model: LatentDiffusion
    folder: Path
    fields: Fields
    images: Tensor
    precision: Precision = "auto"
    about: Mapping[str, bool] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, networks: ConditionalDenoiser, step: int) -> Values:
        model = with_networks(self.model, networks)
        request = SampleRequest(
            fields=self.fields,
            count=len(self.images),
            size=(self.images.shape[2], self.images.shape[3]),
            batch=len(self.images),
            guidance=preview_guidance(model),
            **_preview_steps(model),
        )
        try:
            with autocast(model.device, self.precision):
                images = pipeline.sample(model, request).images.cpu()
        except NotFiniteError as error:
            return skipped("preview", step, error)
        shown = condition_images(self.fields, model.config.conditioning_metadata, self.images)
        rows = interleave(*shown, images, self.images)
        sheet = image_grid(rows, columns=4 * (len(shown) + 2))
        save_png(self.folder / f"samples-{step:08d}.png", sheet, scale=_scale(images))
        return {"sample_psnr": psnr(images.clamp(-1, 1), self.images).mean().item(), **self.about}


def _preview_steps(model: LatentDiffusion) -> dict[str, Any]:
    """A student has its own sampler, and a number of steps that suits it."""
    assert model.second is not None
    return {} if model.second.config.student else {"sampler": PREVIEW_SAMPLER, "steps": PREVIEW_STEPS}


def skipped(what: str, step: int, error: NotFiniteError) -> Values:
    """No numbers, and a warning: samples that are not finite do not end the training, which may recover."""
    warnings.warn(f"no {what} of step {step}: {error}", stacklevel=3)
    return {}


def preview_guidance(model: LatentDiffusion) -> float | dict[str, float]:
    """The guidance scale, above 1 if the model was trained without its condition, or without a part, some of the
    time."""
    assert model.second is not None
    config = model.second.config
    parts = {name: DEFAULT_GUIDANCE for name, rate in config.part_dropout.items() if rate > 0}
    if config.conditioner.kind == "composite" and parts:
        return parts
    return PREVIEW_GUIDANCE if config.condition_dropout > 0 else 1.0


def samples_of(
    model: LatentDiffusion, data: RunData, folder: Path, config: DiffusionRun | FewStepRun
) -> "Samples | ConditionedSamples":
    """The preview that suits what the model is conditioned on, on held-out examples."""
    if not config.conditions.gives:
        return Samples.of(model, data, folder, config.train.precision)
    source = data.measured
    fields, images = preview_fields(source, SHOWN, model, config.data, config.conditions)
    return ConditionedSamples(model, folder, fields, images, config.train.precision, data.about_measured)


def with_networks(model: LatentDiffusion, networks: ConditionalDenoiser) -> LatentDiffusion:
    """The model with its networks replaced by the (averaged) ones of a run."""
    assert model.second is not None
    conditioner = networks.conditioner
    second: SecondStage = replace(model.second, denoiser=networks.denoiser, conditioner=conditioner)
    return replace(model, second=second)


def with_code_networks(model: CodeModel, networks: ConditionalTransformer) -> CodeModel:
    """As `with_networks`, for a transformer over codes."""
    return replace(model, network=networks.transformer, conditioner=networks.conditioner)


def sample_in_sizes(
    model: LatentDiffusion, request: SampleRequest, sizes: Sequence[tuple[int, int]] | None
) -> list[Tensor]:
    """The images (3, H, W) of a request, each in its own of `sizes` if they are given.

    Prompts, labels and seeds may be several, one for each image; all else holds for all.
    """
    if sizes is None:
        return list(pipeline.sample(model, request).images)
    seeds = list(request.seeds or range(request.seed, request.seed + len(sizes)))
    images: dict[int, Tensor] = {}
    for size in dict.fromkeys(sizes):
        rows = [row for row, own in enumerate(sizes) if own == size]
        prompt, label = (
            [given[row] for row in rows] if isinstance(given, Sequence) and not isinstance(given, str) else given
            for given in (request.prompt, request.label)
        )
        chosen: dict[str, Any] = {"prompt": prompt, "label": label, "seeds": [seeds[row] for row in rows]}
        part = replace(request, count=len(rows), size=size, **chosen)
        images |= dict(zip(rows, pipeline.sample(model, part).images, strict=True))
    return [images[row] for row in range(len(sizes))]


def _scale(images: Tensor) -> int:
    return max(1, 128 // images.shape[-1])
