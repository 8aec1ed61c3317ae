"""All workloads by name, in the order they run, and the two series that show how cost grows."""

from collections.abc import Callable
from dataclasses import replace

from benchmarks.adversarial import first_stage_step
from benchmarks.feeding import epochs, folder_batches, latent_batches
from benchmarks.networks import DEMO, W1, W2, W2_REAL
from benchmarks.processes import sampling
from benchmarks.sampling_loops import alike_images, same_steps
from benchmarks.workloads import Scope, Workload, first_stage, lean, network_call, second_stage_step
from sfumato.autoencoder.model import AutoencoderConfig
from sfumato.denoiser.unet import UNetConfig

Build = Callable[[Scope], Workload]

WORKLOADS: dict[str, Build] = {
    "W1 call": lambda scope: network_call(W1, 1, False, scope),
    "W2 guided call": lambda scope: network_call(W2, 2, True, scope),
    "W2-real guided call, 64x64": lambda scope: network_call(W2_REAL, 2, True, lean(scope), size=64),
    "W2 sample, 20 steps": lambda scope: same_steps(W2, 20, scope),
    "W2 sample, images alike": lambda scope: alike_images(W2, scope),
    "W3 decode 256": lambda scope: first_stage(256, True, scope),
    "W3 encode 256": lambda scope: first_stage(256, False, scope),
    "W3 decode 512": lambda scope: first_stage(512, True, scope),
    "W3 encode 512": lambda scope: first_stage(512, False, scope),
    "W4 step, W1 batch 8": lambda scope: second_stage_step(W1, 8, 32, False, scope),
    "W4 step, W2 batch 8": lambda scope: second_stage_step(W2, 8, 32, True, scope),
    "W4 step, small batch 64": lambda scope: second_stage_step(UNetConfig(channels=64), 64, 16, False, scope),
    "W4 step, the demo's, batch 64": lambda scope: second_stage_step(DEMO, 64, 8, True, scope, (24, 64)),
    "W5 step, 64 pixels batch 16": lambda scope: first_stage_step(32, 16, 64, scope),
    "W6 first image from cold, 1 step": lambda scope: sampling(1, scope),
    "W7 folder of photographs": lambda scope: folder_batches(count=128, size=256, batch=16, batches=8),
    "W7 folder and shards of photographs": lambda scope: epochs(count=128, size=256, batch=16),
    "W7 latents of 256 pixels": lambda scope: latent_batches(AutoencoderConfig(), 16, 256, 4, 2, scope),
    "W8 sample, 20 steps": lambda scope: sampling(20, scope),
}

LATENT_SIDES = (16, 32, 64, 128)
FACTORS = (1, 2, 4, 8, 16)
ATTENDED = 32
"""Levels of at most this side attend, whatever f is: else f = 1 would pay for attention over 65,536 places."""


def _growing(scope: Scope) -> Scope:
    """Few candidates, and not the original: a single matrix of its attention over 128 x 128 places is 11 GB."""
    return replace(lean(scope), original=None)


def _at_factor(f: int, scope: Scope) -> Workload:
    """A call for one image of 256 x 256, the same network on its latent."""
    side = 256 // f
    factors = tuple(factor for factor in (1, 2, 4) if side // factor <= ATTENDED)
    config = UNetConfig(channels=128, channel_multipliers=(1, 2, 3), attention_factors=factors)
    return network_call(config, 1, False, _growing(scope), size=side)


def _latent_side(side: int) -> Build:
    return lambda scope: network_call(W2, 2, True, _growing(scope), size=side)


def _factor(f: int) -> Build:
    return lambda scope: _at_factor(f, scope)


LATENT_GROWTH: dict[str, Build] = {f"latent {side}x{side}": _latent_side(side) for side in LATENT_SIDES}
FACTOR_GROWTH: dict[str, Build] = {f"f = {f}": _factor(f) for f in FACTORS}
GROWTH: dict[str, dict[str, Build]] = {
    "A guided call of W2 by the latent's size": LATENT_GROWTH,
    "A call for an image of 256x256 by f": FACTOR_GROWTH,
}
"""By the table's title."""
