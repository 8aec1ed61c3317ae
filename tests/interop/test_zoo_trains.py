"""Every diffusion model of the paper, shrunken: trains for a few steps on given fields, and samples."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import sfumato
from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig
from sfumato.autoencoder.scaling import Scaling
from sfumato.cli.run_configuration import with_data
from sfumato.conditioning.condition import Condition, ConditionSpec
from sfumato.conditioning.table import build_conditioner, text_config
from sfumato.conditioning.tokenizer import fit_tokenizer
from sfumato.config import parse
from sfumato.denoiser.table import build_denoiser
from sfumato.diffusion import objective, times
from sfumato.diffusion.process import add_noise, network_time
from sfumato.diffusion.schedule import build_schedule
from sfumato.pipeline.denoise import Guidance, Network, guided
from sfumato.pipeline.latents import decode
from sfumato.rng import SampleNoise
from sfumato.sampling.grids import GridConfig, build_grid
from sfumato.sampling.loop import sample
from sfumato.sampling.table import DDIMConfig, build_sampler
from sfumato.training.diffusion import ConditionalDenoiser
from sfumato.training.diffusion_run import DiffusionRun

FILES = sorted((Path(sfumato.__file__).parent / "zoo" / "ldm").glob("*.yaml"))
SECOND_STAGES = [file for file in FILES if "denoiser" in yaml.safe_load(file.read_text(encoding="utf-8"))]
B = 2
"""Samples."""


def shrunken(file: Path) -> DiffusionRun:
    """The configuration at 32 channels and 64 at the last level, one block a level, and a shallow conditioner."""
    raw = with_data(yaml.safe_load(file.read_text(encoding="utf-8")), Path("a/folder"))
    multipliers = [*[1] * (len(raw["denoiser"]["channel_multipliers"]) - 1), 2]
    raw["denoiser"] |= {"channels": 32, "channel_multipliers": multipliers, "blocks_per_level": 1}
    if "depth" in raw.get("conditioner", {}):
        raw["conditioner"] |= {"depth": 1, "dim": 32}
    return parse(raw, DiffusionRun, str(file))


def fields_for(reads: tuple[str, ...], config: Any, side: int) -> dict[str, Any]:
    """The fields that a dataset would give the conditioner for latents of H = W = side."""
    given: dict[str, Any] = {
        "label": torch.tensor([1, 3]),
        "text": ["a red apple", "a tree"],
        "map": torch.randint(0, 182, (B, 4 * side, 4 * side), generator=torch.Generator().manual_seed(0)),
        "boxes": [torch.tensor([[0.1, 0.2, 0.5, 0.9]]), torch.tensor([[0.0, 0.0, 1.0, 0.5], [0.5, 0.5, 0.9, 0.9]])],
        "categories": [torch.tensor([3]), torch.tensor([5, 7])],
        "low_resolution": torch.rand(B, 3, side, side) * 2 - 1,
        "masked_latent": torch.randn(B, 3, side, side),
        "mask": torch.ones(B, 1, side, side),
    }
    return {name: given[name] if name in given else torch.randn(B, 4, config.dim) for name in reads}


@pytest.mark.parametrize("file", SECOND_STAGES, ids=lambda file: file.stem)
def test_a_published_model_trains_small_and_samples(file: Path) -> None:
    config = shrunken(file)
    side = max(8, 2 * config.denoiser.factor)
    torch.manual_seed(0)
    tokenizer = fit_tokenizer(["a red apple", "a tree"], 512) if text_config(config.conditioner) else None
    conditioner = build_conditioner(config.conditioner, tokenizer)
    spec = ConditionSpec() if conditioner is None else conditioner.spec
    fields = {} if conditioner is None else fields_for(conditioner.reads, config.conditioner, side)
    autoencoder = Autoencoder(AutoencoderConfig(channels=32, channel_multipliers=(1, 1), blocks_per_level=1))
    schedule = build_schedule(config.schedule)
    networks = ConditionalDenoiser(build_denoiser(config.denoiser, autoencoder.latent_channels, spec), conditioner)
    learning = [p for p in networks.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=1e-3)

    g = torch.Generator().manual_seed(1)
    x0 = torch.randn(B, autoencoder.latent_channels, side, side, generator=g)
    noise = objective.sample_noise(config.objective, x0.shape[1:], lambda one: torch.randn(B, *one, generator=g))
    t = times.sample(config.objective.times, B, g, schedule, config.objective.stratified).t
    x_t = add_noise(schedule, x0, noise, t)
    losses: list[Tensor] = []
    for _ in range(4):  # the same batch: the loss must fall
        prediction = networks(x_t, network_time(t, schedule.steps).float(), fields, None)
        loss = objective.loss(config.objective, schedule, prediction, x0, noise, t).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    assert losses[-1] < 0.99 * losses[0], losses
    if conditioner is not None and any(p.requires_grad for p in conditioner.parameters()):
        assert all(p.grad is not None for n, p in conditioner.named_parameters() if "to_logits" not in n)

    with torch.no_grad():
        condition = Condition() if conditioner is None else conditioner(fields)
        denoise = guided(Network(networks.denoiser, schedule, config.objective.prediction), condition, None, Guidance())
        grid = build_grid(GridConfig(kind="leading"), schedule, 2)
        shape = (autoencoder.latent_channels, side, side)
        noise = SampleNoise([0, 1])
        with torch.no_grad():
            x = noise((2, *shape))
            latents = sample(build_sampler(DDIMConfig()), schedule, denoise, x, grid, noise)
        images = decode(autoencoder, Scaling.from_factor(autoencoder.latent_channels, 1.0), latents)
    assert images.shape == (B, 3, 2 * side, 2 * side)
    assert bool(torch.isfinite(images).all())
