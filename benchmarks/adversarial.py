"""The training step of stage 1: autoencoder and discriminator, as the loop in `sfumato.training.autoencoder` takes it.

diffusers has the autoencoder but neither discriminator nor losses, so that side takes ours, unfused, with diffusers'
network in the autoencoder's place: what differs is the network's code, the optimiser and the memory format.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import autoencoder_pair
from benchmarks.workloads import BEST, BETAS, DECAY, DEFAULT, RATE, Call, Scope, Workload, channels_last
from sfumato.autoencoder.bottleneck import Encoding
from sfumato.autoencoder.losses import AdversarialConfig, LogitAverages, LossConfig
from sfumato.autoencoder.model import AutoencoderConfig
from sfumato.config import parse
from sfumato.engine.training import for_training
from sfumato.estimate import work
from sfumato.training.autoencoder import build_stage1
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.averages import ema
from sfumato.training.optim import OptimiserConfig, build_optimiser
from sfumato.training.stage1_losses import DiscriminatorPass, Stage1Modules, discriminator_losses, generator_losses
from sfumato.training.workers import Workers

CL = torch.channels_last
LOSS = LossConfig(adversarial=AdversarialConfig(weight=0.5, start=0))


class TheirAutoencoder(nn.Module):
    """diffusers' AutoencoderKL with the face that the losses ask for."""

    variational = True

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def encode(self, image: Tensor) -> Encoding:
        """The mean as the latent."""
        posterior = self.network.encode(image, return_dict=False)[0]
        return Encoding(posterior.mean, posterior.kl().mean(), posterior.parameters, None)

    def decode(self, z: Tensor, quantize: bool = True) -> Tensor:
        """(B, 3, H, W)."""
        image: Tensor = self.network.decode(z, return_dict=False)[0]
        return image

    def last_layer(self) -> Tensor:
        """Where the adaptive weight balances gradients."""
        weight: Tensor = self.network.decoder.conv_out.weight
        return weight


def first_stage_step(channels: int, batch: int, size: int, scope: Scope) -> Workload:
    """Both networks, forward, backward, AdamW and the average, f = 4, on (batch, 3, size, size); the result is L1."""
    model = AutoencoderConfig(channels=channels, channel_multipliers=(1, 2, 4))
    ours, theirs = autoencoder_pair(model, size)
    raw = {"model": model.model_dump(), "data": {"kind": "toy", "size": size}, "loss": LOSS.model_dump()}
    config = parse(raw, AutoencoderRun, "W5")
    critic = build_stage1(config, Workers("cpu")).discriminator
    assert critic is not None
    image = torch.rand(batch, 3, size, size) * 2 - 1

    def their_step(network: nn.Module, half: bool, best: bool) -> Call:
        def optimiser(network: nn.Module) -> torch.optim.Optimizer:
            return torch.optim.AdamW(network.parameters(), lr=RATE, betas=BETAS, fused=best or None)

        discriminator = channels_last(critic) if best else copy.deepcopy(critic)
        channels_last_image = image.contiguous(memory_format=CL) if best else image
        return _step(TheirAutoencoder(network), discriminator, channels_last_image, optimiser, half)

    def our_step(half: bool) -> Call:
        def optimiser(network: nn.Module) -> torch.optim.Optimizer:
            return build_optimiser(OptimiserConfig(learning_rate=RATE, betas=BETAS), network)

        autoencoder = for_training(copy.deepcopy(ours))
        return _step(autoencoder, channels_last(critic), image.contiguous(memory_format=CL), optimiser, half)

    candidates = {
        DEFAULT: their_step(copy.deepcopy(theirs), half=False, best=False),
        f"{BEST} float32": their_step(channels_last(theirs), half=False, best=True),
    }
    if scope.half:
        candidates[f"{BEST} bf16"] = their_step(channels_last(theirs), half=True, best=True)
        candidates["sfumato bf16"] = our_step(half=True)
    candidates["sfumato float32"] = our_step(half=False)
    return Workload(candidates, batch, "images", float(batch * work.first_stage(config, "both").total))


def _step(
    autoencoder: Any,
    critic: nn.Module,
    image: Tensor,
    optimiser: Callable[[nn.Module], torch.optim.Optimizer],
    half: bool,
) -> Call:
    autoencoder.train()
    shadow = ema.average_of(autoencoder)
    modules = Stage1Modules(autoencoder, critic, None, nn.ParameterList([]), None)  # type: ignore[arg-type]  # no codes
    both_logits = DiscriminatorPass(critic)  # type: ignore[arg-type]
    autoencoder_step, critic_step = optimiser(autoencoder), optimiser(critic)
    workers = Workers("cpu")

    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            encoding = autoencoder.encode(image)
            output = autoencoder.decode(encoding.z, quantize=False)
            total, terms = generator_losses(LOSS, modules, image, output, encoding, 1.0, workers)
        total.backward()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            total, _ = discriminator_losses(LOSS.adversarial, *both_logits(image, output), LogitAverages())
        total.backward()
        for each in (autoencoder_step, critic_step):
            each.step()
        ema.update(shadow, autoencoder, DECAY)
        for each in (autoencoder_step, critic_step):
            each.zero_grad(set_to_none=True)
        return terms["reconstruction"]

    return step
