"""Interpolation between seeds and between prompts, through a model's noise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sfumato.conditioning.condition import Condition, between
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.pipeline import pipeline
from sfumato.pipeline.conditions import ConditionInputs, conditions_for, source_of
from sfumato.pipeline.plan import notes_of, warn_of
from sfumato.pipeline.request import SampleRequest
from sfumato.rng import SampleNoise
from sfumato.sampling.inversion import slerp


@dataclass(frozen=True)
class Stop:
    """A key image: its seed, and its prompt or label where the model is conditioned on them."""

    seed: int
    text: str | None = None
    label: int | str | None = None


def stops_of(seeds: Sequence[int], prompts: Sequence[str] | None, labels: Sequence[str] | None) -> list[Stop]:
    """One stop for each seed, prompt and label; what is given once holds for all. UserError where they are unlike."""
    count = max(len(seeds), len(prompts or ()), len(labels or ()))
    for name, values in (("seeds", seeds), ("prompts", prompts), ("labels", labels)):
        if values and len(values) not in (1, count):
            raise UserError(f"{len(values)} {name} do not go with {count} stops: give one, or as many")
    if count < 2:
        raise UserError("there is only one stop: give two seeds (--seeds 3,7), prompts or labels at least")

    def at(values: Sequence[Any] | None, index: int) -> Any:
        return None if not values else values[index % len(values)]

    return [Stop(at(seeds, i), at(prompts, i), at(labels, i)) for i in range(count)]


def interpolate(
    model: LatentDiffusion, stops: Sequence[Stop], frames: int, options: SampleRequest | None = None
) -> Tensor:
    """Images (M, 3, H, W) from stop to stop: `frames` per segment, M = (stops - 1) · (frames - 1) + 1.

    Noise is interpolated along the arc between two seeds (slerp), conditions linearly between two prompts; the frames
    at the stops are the images of those seeds and prompts. A stochastic sampler uses the first seed's step noise for
    all frames.

    Args:
        model: the model.
        stops: at least two, either all or none with a text, and likewise for labels.
        frames: images of a segment, both ends included, at least 2.
        options: sampling options; prompt, label, seeds, noise and condition are ignored.

    Raises:
        UserError: for fewer stops or frames, and for options that do not fit the model.
    """
    options = options or SampleRequest()
    request = interpolation_request(model, stops, frames, options)
    texts = [stop.text for stop in stops if stop.text is not None]
    warn_of(notes_of(source_of(model), ConditionInputs(texts)))
    return pipeline.sample(model, request).images


def interpolation_request(
    model: LatentDiffusion, stops: Sequence[Stop], frames: int, options: SampleRequest
) -> SampleRequest:
    """The request of `interpolate`, not yet run: M images with their noise and their condition."""
    if len(stops) < 2 or frames < 2:
        raise UserError(f"{len(stops)} stops and {frames} frames: an interpolation requires at least two of each")
    size = options.size or model.config.image_size
    shape = model.latent_shape_of(size)
    noises = [SampleNoise([stop.seed])((1, *shape)) for stop in stops]
    conditioned = any(stop.text is not None or stop.label is not None for stop in stops)
    conditions = [_condition(model, stop, shape) for stop in stops]
    weights = [torch.linspace(0, 1, frames)[int(stretch > 0) :] for stretch in range(len(stops) - 1)]
    noise = [slerp(a.expand(len(w), -1, -1, -1), b, w) for a, b, w in zip(noises, noises[1:], weights, strict=False)]
    parts = [between(a, b, w) for a, b, w in zip(conditions, conditions[1:], weights, strict=False)]
    fields = {name: torch.cat([part.tensors()[name] for part in parts]) for name in conditions[0].tensors()}
    count = sum(len(w) for w in weights)
    return replace(
        options,
        prompt=None,
        label=None,
        count=count,
        seeds=[stops[0].seed] * count,
        size=size,
        noise=torch.cat(noise),
        condition=Condition(**fields) if conditioned else None,
    )


def _condition(model: LatentDiffusion, stop: Stop, shape: tuple[int, int, int]) -> Condition:
    inputs = ConditionInputs(None if stop.text is None else [stop.text], None if stop.label is None else [stop.label])
    return conditions_for(source_of(model), 1, shape[1:], inputs).condition
