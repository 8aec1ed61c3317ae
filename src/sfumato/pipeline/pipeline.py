"""The pipeline: a request -> conditions -> denoise function -> sampling loop -> latents -> images.

All images of diffusion models are sampled by `sample`. It depends on neither files nor user interface.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sfumato.denoiser.unet import UNet
from sfumato.diffusion.flow_map import Path
from sfumato.diffusion.process import add_noise
from sfumato.engine.reuse import Reusing
from sfumato.pipeline import latents as codec
from sfumato.pipeline.conditions import Conditions, conditions_for, rows_of, source_of, take_rows
from sfumato.pipeline.denoise import Guidance, Network, StudentNetwork, guided, guided_by_image, guided_by_parts, halves
from sfumato.pipeline.latents import check_finite
from sfumato.pipeline.parts import Model, SecondStage, second_stage, tiny_decoder
from sfumato.pipeline.plan import Plan, plan
from sfumato.pipeline.record import SampleRecord
from sfumato.pipeline.recording import record_of
from sfumato.pipeline.request import SampleRequest
from sfumato.rng import SampleNoise
from sfumato.sampling.guidance import Trajectory, autoguidance, toward
from sfumato.sampling.inpainting import KnownRegion
from sfumato.sampling.loop import sample as sampling_loop
from sfumato.sampling.sampler import Denoise
from sfumato.sampling.table import build_sampler
from sfumato.sampling.windows import Window, windowed


@dataclass(frozen=True, eq=False)
class Samples:
    """Images (N, 3, H, W) in about [-1, 1], and how they were made."""

    images: Tensor
    model: Model
    request: SampleRequest
    plan: Plan

    @cached_property
    def record(self) -> SampleRecord:
        """The resolved options; it includes the model's digest, so the first call reads all weights."""
        return record_of(self.model, self.request, self.plan)


@dataclass(frozen=True, eq=False)
class Batch:
    """The images (B, 3, H, W) of some rows of a request."""

    rows: range
    images: Tensor


def sample(model: Model, request: SampleRequest) -> Samples:
    """All images of a request. Raises UserError for a request that does not fit, before any network is called."""
    planned = plan(model, request)
    if request.on_record is not None:
        request.on_record(record_of(model, request, planned))
    images = torch.cat([batch.images for batch in batches(model, request, planned)])
    return Samples(images, model, request, planned)


def batches(
    model: Model, request: SampleRequest, planned: Plan, firsts: Iterable[int] | None = None
) -> Iterator[Batch]:
    """The images batch by batch, so that each can be written before the next is sampled.

    `planned` is `plan(model, request)`; `firsts` are the first rows of the batches to sample, by default `first_rows`:
    all of them. Raises NotFiniteError naming a network that returned non-finite numbers.
    """
    for first in first_rows(request, planned) if firsts is None else firsts:
        rows = range(first, min(planned.count, first + request.batch))
        latents = sample_latents(model, request, planned, slice(rows.start, rows.stop))
        yield Batch(rows, decode(model, latents, request))


def first_rows(request: SampleRequest, planned: Plan) -> range:
    """The first row of each batch of a request."""
    return range(0, planned.count, request.batch)


@torch.no_grad()
def sample_latents(model: Model, request: SampleRequest, planned: Plan, rows: slice) -> Tensor:
    """Model latents (B, C, h, w) of some rows."""
    second = second_stage(model)
    noise = SampleNoise(planned.seeds[rows], device=model.device)
    x = noise((noise.samples, *planned.shape))
    if request.noise is not None:
        x = request.noise[rows].to(x)
    if request.initial is not None:
        x = _initial(second, _rows(request.initial, rows, planned.count).to(x), x, request.strength, planned.times)
    if planned.steps > 0:
        x = _sampled(model, request, planned, rows, x, noise)
    return check_finite(x, "denoiser", "latents")


def decode(model: Model, latents: Tensor, request: SampleRequest) -> Tensor:
    """Model latents (B, C, h, w) -> images (B, 3, H, W) in about [-1, 1], by the decoder of the request."""
    if request.decoder == "tiny":
        return codec.preview(tiny_decoder(model), model.scaling, latents, memory=request.memory)
    return codec.decode(model.autoencoder, model.scaling, latents, memory=request.memory)


def conditions_of(model: Model, request: SampleRequest, planned: Plan, rows: slice) -> Conditions:
    """The conditions of some rows of a request for a model: the request's own or the weaker one of autoguidance."""
    count, size = len(planned.seeds[rows]), planned.shape[1:]
    fields, ready = take_rows(planned.fields, rows), rows_of(request.condition, rows)
    return conditions_for(source_of(model), count, size, planned.inputs.rows(rows), fields, ready)


def network_of(model: Model, reuse: int = 1) -> Network:
    """The denoiser of a model; `reuse`: every `reuse`-th call is complete, the others reuse deep features."""
    second = second_stage(model)
    denoiser = second.denoiser
    if reuse > 1:
        assert isinstance(denoiser, UNet)  # the plan has refused others
        denoiser = Reusing.of(denoiser, reuse)
    return Network(denoiser, second.schedule, second.config.prediction)


def _sampled(model: Model, request: SampleRequest, planned: Plan, rows: slice, x: Tensor, noise: SampleNoise) -> Tensor:
    """Samples from x at the first time of the plan to the latents at its last."""
    trajectory, schedule = Trajectory(), second_stage(model).schedule
    denoise = _denoise(model, request, planned, rows, trajectory)
    sampler = build_sampler(planned.choice.sampler)
    if request.known is None or request.keep is None:
        return sampling_loop(
            sampler, schedule, denoise, x, planned.times, noise, request.callback, trajectory.begin_step
        )
    known, keep = (_rows(part, rows, planned.count).to(x) for part in (request.known, request.keep))
    sampler = KnownRegion(sampler, known, keep)
    x = sampling_loop(sampler, schedule, denoise, x, planned.times, noise, request.callback, trajectory.begin_step)
    return keep * known + (1 - keep) * x


def _denoise(model: Model, request: SampleRequest, planned: Plan, rows: slice, trajectory: Trajectory) -> Denoise:
    """The guided denoise function of a batch: each kind of guidance wraps the previous one."""
    of_window = _of_window(model, request, planned, rows, trajectory)
    denoise = windowed(of_window, planned.shape[1:], planned.window, request.overlap)
    if request.classifier is not None:
        log_p, scale = request.classifier.log_likelihood, request.classifier.scale
        denoise = toward(denoise, second_stage(model).schedule, log_p, scale, "noisy")
    if request.image_guidance is not None:
        denoise = guided_by_image(denoise, model.autoencoder, model.scaling, request.image_guidance)
    return denoise


def _of_window(
    model: Model, request: SampleRequest, planned: Plan, rows: slice, trajectory: Trajectory
) -> Callable[[Window], Denoise]:
    """The guided denoise function of a window; guidance state belongs to the window and the trajectory."""
    conditions, second = conditions_of(model, request, planned, rows), second_stage(model)
    scales = planned.scales[rows]
    scale: float | Tensor = scales[0] if len(set(scales)) == 1 else torch.tensor(scales, device=model.device)
    if second.config.student is not None:
        student = StudentNetwork(second.denoiser, Path(second.schedule, second.config.prediction))
        return lambda window: student.denoise(conditions.of(window)[0], scale, trajectory)
    network = network_of(model, request.reuse)
    guidance = Guidance(scale, request.interval, request.rescale, request.projection)
    weaker = None if request.autoguide is None else conditions_of(request.autoguide, request, planned, rows)
    whole = None
    if conditions.null is not None and planned.parts is None and set(scales) != {1.0}:
        whole = halves(network, conditions.condition, conditions.null)

    def of_window(window: Window) -> Denoise:
        if planned.parts is not None:
            each = conditions.one_by_one(window, list(planned.parts))
            denoise = guided_by_parts(network, each, list(planned.parts.values()), request.interval)
        else:
            condition, null = conditions.of(window)
            shared = whole if condition is conditions.condition else None  # not stacked again for every window
            denoise = guided(network, condition, null, guidance, trajectory, shared)
        if weaker is None or request.autoguide is None:
            return denoise
        worse = network_of(request.autoguide).denoise(weaker.of(window)[0])
        combine = guidance.combine(trajectory)
        return autoguidance(denoise, worse, request.autoguide_scale, request.interval, combine)

    return of_window


def _initial(second: SecondStage, latent: Tensor, noise: Tensor, strength: float, times: Tensor) -> Tensor:
    """The start of the loop: the latent noised to the first time, pure noise at strength 1, the latent at strength
    0."""
    if strength == 0:
        return latent
    return noise if strength == 1 else add_noise(second.schedule, latent, noise, times[0])


def _rows(values: Tensor, rows: slice, count: int) -> Tensor:
    """Some rows of (1 or N, ...)."""
    return values.expand(count, *values.shape[1:])[rows]
