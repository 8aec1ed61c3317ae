"""What a run shows while it trains: reconstructions, samples, and the numbers that go with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sfumato import pictures
from sfumato.autoencoder.bottleneck import bits_per_dimension, code_counts, codebook_usage
from sfumato.autoencoder.model import Autoencoder, VQConfig
from sfumato.autoencoder.scaling import LatentStatistics
from sfumato.autoregressive.model import CodeModel
from sfumato.checkpoint import write_text
from sfumato.conditioning.composite import Composite
from sfumato.conditioning.condition import Fields
from sfumato.data.dataset import Dataset
from sfumato.data.loader import sweep
from sfumato.engine.precision import Precision, autocast
from sfumato.evaluation.image_quality import psnr, ssim
from sfumato.generate import Guidance, decode, generate_latents, guided, guided_by_parts
from sfumato.model import DEFAULT_GUIDANCE, DEFAULT_STEPS, LatentDiffusion, SecondStage, sampler_named
from sfumato.rng import SampleNoise
from sfumato.sampling.grids import build_grid
from sfumato.sampling.sampler import Denoise
from sfumato.sampling.table import build_sampler, default_grid
from sfumato.training.condition_pictures import condition_pictures
from sfumato.training.conditions import preview_fields
from sfumato.training.data import RunData
from sfumato.training.diffusion import DiffusionRun, Steered
from sfumato.training.transformer import Prompted

Values = Mapping[str, float | list[float]]
SHOWN = 16
PREVIEW_SAMPLER = "dpmpp-2m"
PREVIEW_GUIDANCE = 1.5
"""Of models steered by pictures or boxes, which say more than a text does."""


@dataclass(frozen=True)
class Reconstructions:
    """Draws `previews/` of an autoencoder on a fixed batch and measures it there: PSNR, SSIM, latent statistics."""

    images: Tensor
    folder: Path
    precision: Precision = "auto"

    @classmethod
    def of(cls, dataset: Dataset, count: int, folder: Path, precision: Precision) -> "Reconstructions":
        """On the first `count` pictures of a data set."""
        rows = range(min(count, len(dataset)))
        images = torch.cat([batch.images for batch in sweep(dataset, 32, rows, unreadable=lambda row, error: None)])
        return cls(images, folder, precision)

    @torch.no_grad()
    def __call__(self, autoencoder: Autoencoder, step: int) -> Values:
        statistics = LatentStatistics()
        outputs, bits, counts = [], [], None
        device = autoencoder.quant_conv.weight.device
        bottleneck = autoencoder.config.bottleneck
        with autocast(device, self.precision):
            for part in self.images.split(32):
                encoding = autoencoder.encode(part.to(device).contiguous(memory_format=torch.channels_last))
                outputs.append(autoencoder.decode(encoding.z, quantize=False).float().clamp(-1, 1).cpu())
                statistics.update(autoencoder.latent_from_moments(encoding.moments))
                if isinstance(bottleneck, VQConfig) and encoding.indices is not None:
                    found = code_counts(encoding.indices, bottleneck.codes)
                    counts = found if counts is None else counts + found
                else:
                    bits.append(bits_per_dimension(encoding.moments).item())
        output = torch.cat(outputs)
        sheet = pictures.grid(pictures.beside(self.images[:SHOWN], output[:SHOWN]), columns=8)
        pictures.save_png(self.folder / f"reconstruction-{step:08d}.png", sheet, scale=_scale(output))
        values: dict[str, float | list[float]] = {
            "psnr": psnr(output, self.images).mean().item(),
            "ssim": ssim(output, self.images).mean().item(),
            "latent_mean": statistics.mean().tolist(),
            "latent_std": statistics.std().tolist(),
        }
        if bits:
            values["bits_per_dimension"] = sum(bits) / len(bits)
        if counts is not None:
            values["held_out_codes_used"] = codebook_usage(counts).used
        return values


@dataclass(frozen=True)
class Samples:
    """Draws `previews/` of a diffusion model: the same prompts and seeds every time."""

    model: LatentDiffusion
    folder: Path
    text: Sequence[str] | None
    label: Sequence[int] | None
    count: int = SHOWN
    precision: Precision = "auto"

    @classmethod
    def of(cls, model: LatentDiffusion, data: RunData, folder: Path, precision: Precision) -> "Samples":
        """With the captions or labels of held-out examples, where the model is steered by them."""
        source = data.held_out or data.training
        conditioner = model.second.conditioner if model.second else None
        reads = () if conditioner is None else conditioner.reads
        fields = [source[i].fields for i in range(min(SHOWN, len(source)))]
        text = [f["text"] for f in fields] if "text" in reads else None
        label = [int(f["label"]) for f in fields] if "label" in reads else None
        count = SHOWN if conditioner is None else len(fields)
        if text is not None:
            write_text(folder / "prompts.txt", "".join(f"{line}\n" for line in text))  # the same from every process
        return cls(model, folder, text, label, count, precision)

    def __call__(self, networks: Steered, step: int) -> Values:
        model = with_networks(self.model, networks)
        with autocast(model.device, self.precision):
            images = model.sample_tensor(
                list(self.text) if self.text is not None else None,
                label=list(self.label) if self.label is not None else None,
                n=self.count,
            )
        pictures.save_png(
            self.folder / f"samples-{step:08d}.png", pictures.grid(images, columns=8), scale=_scale(images)
        )
        return {"sample_mean": images.mean().item(), "sample_std": images.std().item()}


@dataclass(frozen=True)
class CodeSamples:
    """Draws `previews/` of a transformer over codes: the same prompts and seeds every time."""

    model: CodeModel
    folder: Path
    text: Sequence[str] | None
    label: Sequence[int] | None
    count: int = SHOWN

    @classmethod
    def of(cls, model: CodeModel, data: RunData, folder: Path) -> "CodeSamples":
        """With the captions or labels of held-out examples, where the model is steered by them."""
        source = data.held_out or data.training
        reads = () if model.conditioner is None else model.conditioner.reads
        fields = [source[i].fields for i in range(min(SHOWN, len(source)))]
        text = [f["text"] for f in fields] if "text" in reads else None
        label = [int(f["label"]) for f in fields] if "label" in reads else None
        return cls(model, folder, text, label, len(fields) if reads else SHOWN)

    def __call__(self, networks: Prompted, step: int) -> Values:
        model = with_code_networks(self.model, networks)
        images = model.sample_tensor(self.text, self.label, range(self.count))
        pictures.save_png(
            self.folder / f"samples-{step:08d}.png", pictures.grid(images, columns=8), scale=_scale(images)
        )
        return {"sample_mean": images.mean().item(), "sample_std": images.std().item()}


@dataclass(frozen=True)
class SteeredSamples:
    """Draws `previews/` of a model that is steered by pictures or boxes: a row holds condition, sample, and picture."""

    model: LatentDiffusion
    folder: Path
    fields: Fields
    images: Tensor
    precision: Precision = "auto"

    @torch.no_grad()
    def __call__(self, networks: Steered, step: int) -> Values:
        model = with_networks(self.model, networks)
        second = model.second
        assert second is not None
        assert second.conditioner is not None
        count, _, h, w = len(self.images), *model.latent_shape_of((self.images.shape[2], self.images.shape[3]))
        with autocast(model.device, self.precision):
            denoise = self._denoise(second, (h, w))
            sampler = sampler_named(PREVIEW_SAMPLER)
            grid = build_grid(default_grid(sampler, second.schedule), second.schedule, DEFAULT_STEPS)
            shape = (model.autoencoder.latent_channels, h, w)
            noise = SampleNoise(range(count), device=model.device)
            latents = generate_latents(denoise, second.schedule, build_sampler(sampler), grid, shape, noise)
            images = decode(model.autoencoder, model.scaling, latents).cpu()
        shown = condition_pictures(self.fields, model.config.inputs, self.images)
        rows = pictures.beside(*shown, images, self.images)
        sheet = pictures.grid(rows, columns=4 * (len(shown) + 2))
        pictures.save_png(self.folder / f"samples-{step:08d}.png", sheet, scale=_scale(images))
        return {"sample_psnr": psnr(images.clamp(-1, 1), self.images).mean().item()}

    def _denoise(self, second: SecondStage, size: tuple[int, int]) -> Denoise:
        """Guided where the model knows the case without its condition, or without one of its parts."""
        conditioner, dropout = second.conditioner, second.config.condition_dropout
        assert conditioner is not None
        parts = [name for name, rate in second.config.part_dropout.items() if rate > 0]
        network = (second.denoiser, second.schedule, second.config.prediction)
        if isinstance(conditioner, Composite) and parts:
            conditions = conditioner.one_by_one(self.fields, len(self.images), size, parts)
            return guided_by_parts(*network, conditions, [DEFAULT_GUIDANCE] * len(parts))
        null = conditioner.null(len(self.images), size) if dropout > 0 else None
        scale = 1.0 if null is None else PREVIEW_GUIDANCE
        return guided(*network, conditioner(self.fields), null, Guidance(scale))


def samples_of(model: LatentDiffusion, data: RunData, folder: Path, config: DiffusionRun) -> "Samples | SteeredSamples":
    """The preview that suits what the model is steered by, on held-out examples."""
    if not config.conditions.gives:
        return Samples.of(model, data, folder, config.train.precision)
    source = data.held_out or data.training
    fields, images = preview_fields(source, SHOWN, model, config.data, config.conditions)
    return SteeredSamples(model, folder, fields, images, config.train.precision)


def with_networks(model: LatentDiffusion, networks: Steered) -> LatentDiffusion:
    """The model with the (averaged) networks of a run in the place of its own."""
    assert model.second is not None
    conditioner = networks.conditioner
    second: SecondStage = replace(model.second, denoiser=networks.denoiser, conditioner=conditioner)
    return replace(model, second=second)


def with_code_networks(model: CodeModel, networks: Prompted) -> CodeModel:
    """As `with_networks`, of a transformer over codes."""
    return replace(model, network=networks.transformer, conditioner=networks.conditioner)


def _scale(images: Tensor) -> int:
    return max(1, 128 // images.shape[-1])
