"""Forecast of the time of `sfumato sample` with its defaults: measured calls times the number of calls."""

from dataclasses import dataclass

from sfumato import flops
from sfumato.conditioning.condition import ConditionSpec
from sfumato.denoiser.table import build_denoiser
from sfumato.diffusion.schedule import build_schedule
from sfumato.errors import UserError
from sfumato.estimate import from_config, measure, memory
from sfumato.estimate.calls import network_call, network_calls
from sfumato.estimate.speed import USUAL_UTILISATION
from sfumato.model import LatentDiffusion, SecondStage
from sfumato.pipeline.choices import chosen
from sfumato.pipeline.conditions import source_of
from sfumato.pipeline.parts import second_stage
from sfumato.pipeline.plan import guidance_scale
from sfumato.pipeline.request import AUTO
from sfumato.pipeline.students import default_steps
from sfumato.training.diffusion_run import DiffusionRun

TIMED_CALLS = 4
"""Network calls that are timed."""


@dataclass(frozen=True)
class SamplingForecast:
    """Sampling with the default sampler in batches of `batch`. Seconds and operations are per image."""

    parameters: int
    image_size: tuple[int, int]
    latent: tuple[int, int, int]
    batch: int
    sampler: str
    steps: int
    calls: int
    guided: bool
    """Whether a call runs the network twice."""
    call_operations: int
    decode_operations: int
    call_seconds: float
    decode_seconds: float

    @property
    def seconds(self) -> float:
        """Seconds from noise to an image, without loading the model, encoding text and writing files."""
        return self.calls * self.call_seconds + self.decode_seconds


def untrained(config: DiffusionRun, first: LatentDiffusion) -> LatentDiffusion:
    """The untrained model of a run, without a tokenizer: as fast as the trained one."""
    diffusion_config = from_config.diffusion_config(config)
    conditioner = memory.build_meta_conditioner(config.conditioner)
    spec = ConditionSpec() if conditioner is None else conditioner.spec
    denoiser = build_denoiser(config.denoiser, first.autoencoder.latent_channels, spec).eval().requires_grad_(False)
    second = SecondStage(diffusion_config, denoiser, conditioner, build_schedule(config.schedule))
    about = first.config.model_copy(update={"diffusion": diffusion_config})
    return LatentDiffusion(about, first.autoencoder.eval().requires_grad_(False), first.scaling, second)


def forecast_sampling(model: LatentDiffusion, batch: int, peak: float) -> SamplingForecast:
    """Times the model's network calls and decoding; its weights are packed, so it cannot be trained afterwards.

    `peak`: the device's operations per second. Raises UserError for an autoencoder alone, and if measuring would take
    minutes.
    """
    second = second_stage(model)
    guided = measure.guided(model)
    steps = default_steps(second.config)
    choice = chosen(second, AUTO, None, steps, guidance_scale(source_of(model), None))
    spec = ConditionSpec() if second.conditioner is None else second.conditioner.spec
    call = network_call(second.config, model.latent_shape, spec) * (2 if guided else 1)
    decoding = flops.decode(model.config.autoencoder, model.config.image_size)
    expected = batch * (TIMED_CALLS * call + 2 * decoding) / (USUAL_UTILISATION * peak)
    if expected > from_config.MOST_SECONDS:
        raise UserError(
            f"measuring {batch} images of this model would take about {expected / 60:.0f} minutes here: "
            f"give {'a smaller --count, or ' if batch > 1 else ''}a smaller model"
        )
    parameters = memory.parameters([model.autoencoder, second.denoiser, second.conditioner])
    call_seconds, decode_seconds = measure.sampling_seconds(model, "auto", batch)
    return SamplingForecast(
        parameters=parameters,
        image_size=model.config.image_size,
        latent=model.latent_shape,
        batch=batch,
        sampler=choice.sampler.kind,
        steps=steps,
        calls=network_calls(choice.sampler, second.schedule, steps),
        guided=guided,
        call_operations=call,
        decode_operations=decoding,
        call_seconds=call_seconds,
        decode_seconds=decode_seconds,
    )
