"""Network calls of sampling: their number, and the operations of one."""

import torch
from torch import Tensor

from sfumato import flops
from sfumato.conditioning.condition import ConditionSpec
from sfumato.diffusion.schedule import Schedule
from sfumato.model_config import DiffusionConfig
from sfumato.rng import SampleNoise
from sfumato.sampling.grids import build_grid
from sfumato.sampling.loop import sample
from sfumato.sampling.table import SamplerConfig, build_sampler, default_grid


def network_call(config: DiffusionConfig, latent: tuple[int, int, int], spec: ConditionSpec) -> int:
    """Operations of one call of the denoiser for one latent (C, h, w)."""
    return flops.denoise(config.denoiser, latent[0], spec, latent[1:], flops.condition_tokens(config.conditioner))


def network_calls(sampler: SamplerConfig, schedule: Schedule, steps: int) -> int:
    """Network calls of a sampler in `steps` steps, counted by running it on a dummy latent.

    Raises UserError if the sampler does not support this number of steps.
    """
    calls = 0

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.zeros_like(x_t)

    grid = build_grid(default_grid(sampler, schedule), schedule, steps)
    noise = SampleNoise([0])
    sample(build_sampler(sampler), schedule, denoise, noise((1, 1, 1, 1)), grid, noise)
    return calls
