"""Beside the two stages: the loop that trains a classifier of noisy latents, for guidance by its gradient.

Latents, times and noise are those of stage 2; the loss is the cross-entropy of log p(y | x_t) (Dhariwal & Nichol 2021).
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor

from sfumato import rng
from sfumato.autoencoder.model import Autoencoder
from sfumato.autoencoder.scaling import Scaling
from sfumato.classifier import LatentClassifier, build_classifier, described
from sfumato.data.dataset import LatentSource
from sfumato.data.latents import LatentDataset
from sfumato.data.loader import sweep
from sfumato.data.table import DataConfig
from sfumato.denoiser.classifier import ClassifierConfig, NoisyClassifier
from sfumato.diffusion.objective import ObjectiveConfig
from sfumato.diffusion.process import add_noise, network_time
from sfumato.diffusion.schedule import Schedule, ScheduleConfig
from sfumato.diffusion.times import DiscreteTimes, FixedDensity
from sfumato.engine.precision import autocast
from sfumato.engine.training import for_training
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.schema import Schema
from sfumato.training.averages import ema
from sfumato.training.data import HeldOut, check_one_size, height_width
from sfumato.training.encode import measured_scaling
from sfumato.training.micro import micro_batch
from sfumato.training.optim import (
    OptimiserConfig,
    build_optimiser,
    gradients_norm,
    learning_rate,
    read,
    set_rate,
)
from sfumato.training.run import RunFolder
from sfumato.training.session import Periodic, open_session, resume
from sfumato.training.settings import Count, Mirrored, WholeNetworks
from sfumato.training.state import TrainState
from sfumato.training.step_noise import StepNoise, step_noise
from sfumato.training.steps import optimizer_step
from sfumato.training.workers import Workers

SHOWN_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


class ClassifierTraining(WholeNetworks):
    """Length and settings of the training; a step uses batch · accumulate · processes latents."""

    steps: Count = 20_000
    batch: Count = 64
    optimiser: OptimiserConfig = OptimiserConfig(learning_rate=3e-4, weight_decay=0.05)
    preview_images: Count = 512


class ClassifierRun(Schema):
    """The configuration of `sfumato train classifier`. The schedule must be that of the model it is to guide."""

    classifier: ClassifierConfig = ClassifierConfig()
    schedule: ScheduleConfig
    times: FixedDensity = DiscreteTimes()
    data: DataConfig
    held_out: HeldOut = HeldOut()
    mirrored: Mirrored = False
    train: ClassifierTraining = ClassifierTraining()

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        check_one_size(self.data, "a classifier")
        return self


Preview = Callable[[NoisyClassifier, int], Mapping[str, float | list[float]]]
"""Called with the averaged classifier and the step; returns numbers for the log."""

Export = Callable[[NoisyClassifier, TrainState], None]
"""Writes the folder of the averaged classifier."""


def initial_classifier(
    config: ClassifierRun, first: LatentDiffusion, latents: LatentDataset
) -> tuple[LatentClassifier, Scaling]:
    """The classifier to train, initialised from the run's seed, and the scaling of its latents.

    Raises UserError if the data has no labels, or its classes do not fit the configuration.
    """
    if "label" not in latents.fields:
        raise UserError(
            f"a classifier needs labels, but the data has the fields {', '.join(latents.fields) or 'none'}: sort the "
            "images into a folder for each class, or name a column in data.label_column"
        )
    configured, in_data = config.classifier.classes, None if latents.classes is None else len(latents.classes)
    if configured is None and in_data is None:
        raise UserError("the data's classes have no names to count: set classifier.classes")
    if configured is not None and in_data is not None and in_data > configured:
        raise UserError(f"the data has {in_data} classes, the classifier {configured}: leave out classifier.classes")
    if (configured or in_data or 0) < 2:
        raise UserError("the data has one class only: a classifier needs two at least")
    scaling = measured_scaling(latents)
    names = latents.classes if configured in (None, in_data) else None
    about = described(config.classifier, first, scaling, config.schedule, configured or in_data or 0, names)
    with rng.seeded(config.train.seed, "weights", "classifier", device=torch.device("cpu")):
        return build_classifier(about), scaling


def train_classifier(
    config: ClassifierRun,
    classifier: LatentClassifier,
    autoencoder: Autoencoder,
    scaling: Scaling,
    latents: LatentSource,
    folder: RunFolder,
    preview: Preview,
    export: Export,
    workers: Workers | None = None,
) -> TrainState:
    """Trains the classifier's network, or resumes the run in `folder`; returns the final state.

    Raises UserError if the folder holds another run, the disk fills up, or the loss stays non-finite.
    """
    train, workers = config.train, workers or Workers()
    network, schedule = workers.place(classifier.network), classifier.schedule
    scaling = scaling.to(workers.device)
    shadow = ema.average_of(network)
    parameters = list(network.parameters())
    state = TrainState(
        modules={"network": network, "ema": shadow},
        optimisers={"network": build_optimiser(train.optimiser, network)},
    )
    optimiser = state.optimisers["network"]
    resume(folder, state, latents)
    for_training(network)
    wrapped = workers.wrap(network)
    precision = autocast(workers.device, train.precision)
    tasks = [Periodic(train.preview_every, lambda: preview(shadow, state.step))]
    save = partial(export, shadow, state)
    with open_session("classifier", latents, train, state, folder, workers, tasks, save) as session:
        while session.goes_on():
            t_start = time.monotonic()
            set_rate(optimiser, learning_rate(train.optimiser, state.step, session.done))
            sums = torch.zeros(2, device=workers.device)  # cross-entropy, accuracy
            for micro, noise in enumerate(_noise_of_step(config, autoencoder, schedule, state.step, workers)):
                batch = next(session.data).to(workers.device)
                x0 = scaling.to_model(autoencoder.latent_from_moments(batch.moments, noise.posterior))
                inputs = micro_batch(schedule, x0, noise, batch.fields)
                dropout = rng.seeded(train.seed, "dropout", state.step, micro, workers.rank, device=x0.device)
                with workers.accumulating(micro == train.accumulate - 1, wrapped):
                    with precision, dropout:
                        logits = wrapped(inputs.x_t, inputs.timestep).float()
                    loss = F.cross_entropy(logits, inputs.fields["label"])
                    (loss / train.accumulate).backward()
                right = (logits.detach().argmax(1) == inputs.fields["label"]).float().mean()
                sums += torch.stack([loss.detach(), right]) / train.accumulate

            workers.average([sums])
            norm, cross_entropy, accuracy = read(gradients_norm(parameters), *sums)
            finite = optimizer_step(optimiser, train, parameters, norm, network, shadow, state)
            session.count(finite, time.monotonic() - t_start)

            values = {"loss": cross_entropy, "accuracy": accuracy, "gradient_norm": norm}
            values["learning_rate"] = optimiser.param_groups[0]["lr"]
            session.record(values, f"loss {cross_entropy:.4f}, {accuracy:.0%} right")
            session.finish()
    return state


def _noise_of_step(
    config: ClassifierRun, autoencoder: Autoencoder, schedule: Schedule, step: int, workers: Workers
) -> list[StepNoise]:
    """The random numbers of each micro-batch of a step."""
    noising = ObjectiveConfig(times=config.times, stratified=True)
    H, W = height_width(config.data)
    latent = (autoencoder.latent_channels, H // autoencoder.factor, W // autoencoder.factor)
    return step_noise(config.train, noising, schedule, latent, 0.0, step, workers)


class HeldOutAccuracy:
    """Accuracy on held-out latents at several times, with the same noise at every preview."""

    def __init__(
        self,
        latents: LatentDataset,
        autoencoder: Autoencoder,
        scaling: Scaling,
        schedule: Schedule,
        count: int,
        about: Mapping[str, bool] | None = None,
    ) -> None:
        """`about` is added to each record of the log, see `RunData.about_measured`."""
        self._about = dict(about or {})
        rows = range(min(count, len(latents)))
        batches = list(sweep(latents, 64, rows, unreadable=lambda row, error: None))
        self._labels = torch.cat([batch.fields["label"] for batch in batches])
        x0 = torch.cat([autoencoder.latent_from_moments(b.moments.to(scaling.shift.device)) for b in batches])
        self._x0, self._schedule = scaling.to_model(x0), schedule

    @torch.no_grad()
    def __call__(self, network: NoisyClassifier, step: int) -> Mapping[str, float | list[float]]:
        return {"held_out_accuracy": [self._share(network, t) for t in SHOWN_TIMES], **self._about}

    def _share(self, network: NoisyClassifier, t: float) -> float:
        noise = torch.randn(self._x0.shape, generator=rng.generator(0, "accuracy")).to(self._x0)
        times = torch.full((len(noise),), t, dtype=torch.float64)
        x_t = add_noise(self._schedule, self._x0, noise, times)
        timestep = network_time(times, self._schedule.steps).float().to(x_t.device)
        answers = [
            network(part, times).argmax(1) for part, times in zip(x_t.split(64), timestep.split(64), strict=True)
        ]
        right: Tensor = torch.cat(answers).cpu() == self._labels
        return right.float().mean().item()
