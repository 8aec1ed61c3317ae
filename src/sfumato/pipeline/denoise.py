"""Denoise functions, which samplers call, from a network; with or without guidance."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.autoencoder.model import Autoencoder
from sfumato.autoencoder.scaling import Scaling
from sfumato.conditioning.condition import Condition, stack
from sfumato.denoiser.flow_map import step_inputs
from sfumato.diffusion.flow_map import Path, mapped
from sfumato.diffusion.prediction import PredictionKind, to_x0
from sfumato.diffusion.process import broadcast, timestep_like
from sfumato.diffusion.schedule import Schedule
from sfumato.pipeline.request import ImageGuidance, Projection
from sfumato.sampling import guidance as guiding
from sfumato.sampling.sampler import Denoise


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: `scale` 1 is off; it is applied at times inside `interval` (both within [0, 1]).

    scale: one number, or one per sample (B,). rescale: how much of the increase of the standard deviation by guidance
    is removed, 0 to 1 (Lin et al. 2024). projection: adaptive projected guidance.
    """

    scale: float | Tensor = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    projection: Projection | None = None

    def combine(self, trajectory: guiding.Trajectory) -> guiding.Combine:
        """The function that combines conditional and null, for one window; a momentum is registered with the
        trajectory."""
        inner: guiding.Combine = guiding.linear
        if self.projection is not None:
            limit = math.inf if self.projection.limit is None else self.projection.limit
            momentum = trajectory.momentum(self.projection.momentum)
            inner = guiding.Projected(self.projection.parallel, limit, momentum)
        return guiding.Rescaled(self.rescale, inner) if self.rescale else inner


@dataclass(frozen=True)
class Network:
    """A denoiser with its training schedule and kind of prediction."""

    denoiser: nn.Module
    schedule: Schedule
    prediction: PredictionKind

    def denoise(self, condition: Condition) -> Denoise:
        """(x_t (B, C, h, w), t) -> expected clean x0 (B, C, h, w)."""

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = self.schedule(t)
            predicted = self.denoiser(x_t, timestep_like(t, self.schedule.steps, x_t), condition).to(x_t.dtype)
            return to_x0(self.prediction, predicted, x_t, alpha, sigma)

        return denoise

    def together(self, conditions: Sequence[Condition]) -> Callable[[Tensor, Tensor], Sequence[Tensor]]:
        """(x_t, t) -> the expected clean latents under each of the conditions, from one larger batch."""
        stacked = self.denoise(stack(conditions))
        return lambda x_t, t: stacked(torch.cat([x_t] * len(conditions)), t).chunk(len(conditions))


@dataclass(frozen=True)
class StudentNetwork:
    """The network of a student, with the straight path of its schedule and prediction."""

    denoiser: nn.Module
    path: Path

    def velocity(self, x_t: Tensor, t: Tensor, s: Tensor, scale: float | Tensor, condition: Condition) -> Tensor:
        """The mean velocity on the path (B, C, h, w) from x_t (B, C, h, w) at time t to time s of the schedule.

        t, s, scale: one or (B,); at s = t it is the velocity of the flow.
        """
        steps = self.path.schedule.steps
        inputs = step_inputs(timestep_like(t, steps, x_t), timestep_like(s, steps, x_t), scale)
        predicted = self.denoiser(x_t, inputs, condition).to(x_t.dtype)
        return self.path.velocity(predicted, x_t, t)

    def denoise(self, condition: Condition, scale: float | Tensor, trajectory: guiding.Trajectory) -> Denoise:
        """(x_t (B, C, h, w), t) -> the clean latent at the end of the line through x_t and the x_s of this step."""

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            assert trajectory.end is not None, "a student is called within a step"
            u = self.velocity(x_t, t, trajectory.end, scale, condition)
            return mapped(x_t / broadcast(self.path.length(t), x_t), self.path.of_time(t), 0.0, u)

        return denoise


def halves(network: Network, condition: Condition, null: Condition) -> guiding.Pair:
    """(x_t, t) -> (x0 under the condition, x0 under `null`), from one doubled batch, null first."""
    doubled = network.together([null, condition])

    def both(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        without, given = doubled(x_t, t)
        return given, without

    return both


def guided(
    network: Network,
    condition: Condition,
    null: Condition | None,
    guidance: Guidance,
    trajectory: guiding.Trajectory | None = None,
    both: guiding.Pair | None = None,
) -> Denoise:
    """The denoise function with guidance away from `null`; `both` are their `halves` if they already exist."""
    plain = network.denoise(condition)
    if null is None or bool((torch.as_tensor(guidance.scale) == 1).all()):
        return plain
    combine = guidance.combine(trajectory or guiding.Trajectory())
    both = both or halves(network, condition, null)
    return guiding.classifier_free(plain, both, guidance.scale, guidance.interval, combine)


def guided_by_parts(
    network: Network,
    conditions: Sequence[Condition],
    scales: Sequence[float],
    interval: tuple[float, float] = (0.0, 1.0),
) -> Denoise:
    """The denoise function with a guidance scale for each part of a composite conditioner, all in one larger batch.

    conditions: K + 1, from `Composite.one_by_one` for the K parts of `scales`.
    """
    return guiding.by_parts(network.denoise(conditions[-1]), network.together(conditions), scales, interval)


def guided_by_image(denoise: Denoise, autoencoder: Autoencoder, scaling: Scaling, guidance: ImageGuidance) -> Denoise:
    """The denoise function that follows a loss of the decoded image; each call costs a backward pass of both networks.

    The networks must support gradients: those packed by `engine.for_inference` do not.
    """

    def loss(x0: Tensor) -> Tensor:
        return guidance.loss(autoencoder.decode(scaling.to_raw(x0)).float())

    return guiding.toward_image(denoise, loss, guidance.scale)
