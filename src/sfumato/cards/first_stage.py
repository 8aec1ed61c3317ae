"""Measures an autoencoder on images: its reconstructions, and how suitable its latent is for a diffusion model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from sfumato.autoencoder.bottleneck import bits_per_dimension, code_counts, codebook_usage
from sfumato.autoencoder.model import VQConfig
from sfumato.autoencoder.perceptual import LPIPS
from sfumato.autoencoder.scaling import LatentStatistics
from sfumato.cards.card import Metric
from sfumato.cards.reference import chosen_rows
from sfumato.checkpoint import check_finite
from sfumato.counts import none_of
from sfumato.data.dataset import Dataset, Progress, UnreadableImage
from sfumato.data.loader import Batch, sweep
from sfumato.errors import UserError
from sfumato.evaluation.features import FeatureNetwork
from sfumato.evaluation.frechet import GaussianStatistics, frechet_distance
from sfumato.evaluation.image_quality import ms_ssim, psnr, ssim
from sfumato.evaluation.inception import INCEPTION
from sfumato.evaluation.latent_difficulty import latent_difficulty
from sfumato.evaluation.latents import ENERGY_BEYOND, beyond, halved, relative_error, share_above, spectrum
from sfumato.images import interleave, to_uint8
from sfumato.model import LatentDiffusion

PAIRS_SHOWN = 32
SSIM_WINDOW = 11
MS_SSIM_SIDE = 16 * SSIM_WINDOW
LPIPS_SIDE = 16
NUMBERS_KEPT = 1 << 25
"""Of the latents that a Gaussian is fitted to, 128 MiB; further images are left out of that fit and counted."""


@dataclass(frozen=True)
class MeasuredAutoencoder:
    """`details` describe the latent; `pairs` uint8 (2 N, 3, H, W): originals and reconstructions alternate."""

    count: int
    metrics: dict[str, Metric]
    details: dict[str, Any]
    warnings: tuple[str, ...]
    pairs: Tensor


@dataclass
class _Sums:
    """Accumulated over the images: a number each, statistics, spectra; pixels only of the first few."""

    values: dict[str, list[Tensor]] = field(default_factory=dict)
    errors: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    bits: list[tuple[float, int]] = field(default_factory=list)
    originals: dict[str, GaussianStatistics] = field(default_factory=dict)
    outputs: dict[str, GaussianStatistics] = field(default_factory=dict)
    latent: LatentStatistics = field(default_factory=LatentStatistics)
    latent_spectrum: Tensor | None = None
    image_spectrum: Tensor | None = None
    codes: Tensor | None = None
    latents: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    kept: int = 0
    pairs: list[Tensor] = field(default_factory=list)
    count: int = 0


@torch.no_grad()
def measure_autoencoder(
    model: LatentDiffusion,
    dataset: Dataset,
    count: int | None = None,
    networks: Mapping[str, FeatureNetwork] | None = None,
    lpips: LPIPS | None = None,
    batch: int = 16,
    progress: Progress | None = None,
) -> MeasuredAutoencoder:
    """All metrics of a first stage on `count` random images of a dataset, all by default.

    Reconstruction distances (rFD) compare the same images before and after. Raises UserError if no image can
    be read, or f does not divide their size.
    """
    rows = chosen_rows(dataset, count)
    sums = _Sums()
    reasons: list[UnreadableImage] = []
    for read in sweep(dataset, batch, rows, unreadable=lambda row, error: reasons.append(error), progress=progress):
        if sums.count == 0:
            H, W = read.images.shape[-2:]
            model.latent_shape_of((H, W))
        _add(sums, model, read, networks or {}, lpips)
    if sums.count == 0:
        raise UserError(f"{none_of(len(rows), 'image')} can be read: {reasons[0]}")
    metrics, warnings = _metrics(sums, networks or {})
    return MeasuredAutoencoder(sums.count, metrics, _details(sums, model), tuple(warnings), torch.cat(sums.pairs))


def _add(
    sums: _Sums, model: LatentDiffusion, read: Batch, networks: Mapping[str, FeatureNetwork], lpips: LPIPS | None
) -> None:
    images = read.images
    encoding = model.autoencoder.encode(images.to(model.device))
    decoded = model.autoencoder.decode(encoding.z, quantize=False)
    check_finite({"latent": encoding.moments, "image": decoded}, "the first stage's output")
    output = decoded.float().clamp(-1, 1).cpu()
    B, side = len(images), min(images.shape[-2:])
    per_image = {"PSNR": psnr(output, images)}
    if side >= SSIM_WINDOW:
        per_image["SSIM"] = ssim(output, images)
    if side >= MS_SSIM_SIDE:
        per_image["MS-SSIM"] = ms_ssim(output, images)
    if lpips is not None and side >= LPIPS_SIDE:
        with torch.autocast(model.device.type, enabled=False):
            per_image["LPIPS-vgg16"] = lpips(output.to(model.device), images.to(model.device)).double().cpu()
    for name, values in per_image.items():
        sums.values.setdefault(name, []).append(values)
    for name, network in networks.items():
        for statistics, pixels in ((sums.originals, images), (sums.outputs, output)):
            statistics.setdefault(name, GaussianStatistics(network.dim)).update(network(pixels).pooled)
    _add_latent(sums, model, read, encoding.moments, encoding.indices)
    room = PAIRS_SHOWN - sum(len(part) // 2 for part in sums.pairs)
    sums.pairs.append(to_uint8(interleave(images[:room], output[:room])))
    sums.count += B


def _keep(sums: _Sums, latent: Tensor, labels: Tensor | None) -> None:
    """Keeps the latents that a Gaussian will be fitted to, within a bound of memory."""
    room = NUMBERS_KEPT // latent[0].numel() - sums.kept
    if room > 0:
        sums.latents.append(latent[:room])
        sums.labels.extend([] if labels is None else [labels[:room].cpu()])
        sums.kept += len(sums.latents[-1])


def _add_latent(sums: _Sums, model: LatentDiffusion, read: Batch, moments: Tensor, indices: Tensor | None) -> None:
    images = read.images
    autoencoder, B = model.autoencoder, len(images)

    def latent_of(pixels: Tensor) -> Tensor:
        return autoencoder.latent_from_moments(autoencoder.encode(pixels.to(model.device)).moments).float().cpu()

    latent = autoencoder.latent_from_moments(moments).float().cpu()
    sums.latent.update(latent)
    _keep(sums, latent, read.fields.get("label"))
    sums.latent_spectrum = _plus(sums.latent_spectrum, spectrum(latent))
    sums.image_spectrum = _plus(sums.image_spectrum, spectrum(images))
    bottleneck = autoencoder.config.bottleneck
    if isinstance(bottleneck, VQConfig) and indices is not None:
        sums.codes = _plus(sums.codes, code_counts(indices.cpu(), bottleneck.codes))
    elif autoencoder.variational:
        sums.bits.append((bits_per_dimension(moments).item(), B))
    sums.errors.setdefault("equivariance-error-flip", []).append(
        (relative_error(latent_of(images.flip(-1)), latent.flip(-1)), B)
    )
    if images.shape[-2] == images.shape[-1]:
        turned = relative_error(latent_of(images.rot90(dims=(-2, -1))), latent.rot90(dims=(-2, -1)))
        sums.errors.setdefault("equivariance-error-quarter-turn", []).append((turned, B))
    if all(side % (2 * autoencoder.factor) == 0 and side // autoencoder.factor >= 4 for side in images.shape[-2:]):
        small = latent_of(halved(images).clamp(-1, 1))
        sums.errors.setdefault("equivariance-error-scale", []).append((relative_error(small, halved(latent)), B))


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total + more


def _mean(pairs: Sequence[tuple[float, int]]) -> float:
    """The mean over all images, from (mean, size) of each batch."""
    return sum(value * n for value, n in pairs) / sum(n for _, n in pairs)


def _metrics(sums: _Sums, networks: Mapping[str, FeatureNetwork]) -> tuple[dict[str, Metric], list[str]]:
    metrics: dict[str, Metric] = {}
    warnings = []
    for name, network in networks.items():
        if sums.count < 2:
            raise UserError(
                "a reconstruction distance needs more than one image: give --n 2 at least, better thousands"
            )
        label = "rFID" if network.name == INCEPTION else f"rFD-{network.name}"
        value = frechet_distance(sums.outputs[name], sums.originals[name])
        metrics[label] = Metric(value=value, better="lower", protocol=network.describe())
        if sums.count < network.dim:
            warnings.append(
                f"{sums.count} images are fewer than the {network.dim} dimensions of {label}: "
                "compare it only with cards of the same count"
            )
    for name, parts in sums.values.items():
        values = torch.cat(parts)
        finite = values[torch.isfinite(values)]  # equal images have an infinite PSNR, which would hide all others
        better: Literal["lower", "higher"] = "lower" if name.startswith("LPIPS") else "higher"
        if len(finite):
            spread = finite.std(correction=0).item()
            metrics[name] = Metric(value=finite.mean().item(), std=spread, better=better)
        if len(finite) < len(values):
            warnings.append(
                f"{len(values) - len(finite)} of {len(values)} images were reconstructed exactly: {name} excludes them"
            )
    assert sums.latent_spectrum is not None
    _add_difficulty(metrics, warnings, sums)
    metrics["high-frequency-share"] = Metric(value=share_above(sums.latent_spectrum), better="lower")
    for threshold in ENERGY_BEYOND:
        metrics[f"spectral-energy-{threshold}"] = Metric(value=beyond(sums.latent_spectrum, threshold), better="lower")
    for name, pairs in sums.errors.items():
        error = _mean(pairs)
        if math.isfinite(error):
            metrics[name] = Metric(value=error, better="lower")
        else:
            warnings.append(f"the latent of these images does not vary, so {name} is undefined and left out")
    if sums.bits:
        metrics["bits-per-dimension"] = Metric(value=_mean(sums.bits))
    if sums.codes is not None:
        metrics["codes-used"] = Metric(value=codebook_usage(sums.codes).used, better="higher")
    return metrics, warnings


def _add_difficulty(metrics: dict[str, Metric], warnings: list[str], sums: _Sums) -> None:
    """VIV of all latents and, where there are labels, within the classes."""
    latents = torch.cat(sums.latents)
    labels = torch.cat(sums.labels) if len(sums.labels) == len(sums.latents) else None
    for name, within in (("VIV", None), ("VIV-within-classes", labels)):
        if name != "VIV" and within is None:
            continue
        classes = 1 if within is None else len(within.unique())
        if len(latents) <= classes:
            warnings.append(f"{name} needs more images than there are classes, {classes}: it is left out")
            continue
        found = latent_difficulty(latents, within)
        protocol = {"fit": found.fit, "latents": found.latents, "size": list(latents.shape[1:])}
        metrics[name] = Metric(value=found.viv, better="lower", protocol=protocol)
        if within is None:
            metrics["effective-rank"] = Metric(value=found.effective_rank, protocol=protocol)


def _details(sums: _Sums, model: LatentDiffusion) -> dict[str, Any]:
    assert sums.image_spectrum is not None
    statistics = sums.latent
    details: dict[str, Any] = {
        "high_frequency_share_of_images": share_above(sums.image_spectrum),
        "spectral_energy_of_images": {str(each): beyond(sums.image_spectrum, each) for each in ENERGY_BEYOND},
        "latent_mean": statistics.mean().tolist(),
        "latent_std": statistics.std().tolist(),
        "latent_kurtosis": [k if math.isfinite(k) else None for k in statistics.kurtosis().tolist()],
        "factor": model.autoencoder.factor,
        "latent_channels": model.autoencoder.latent_channels,
    }
    if sums.codes is not None:
        details["codebook_perplexity"] = codebook_usage(sums.codes).perplexity
    return details
