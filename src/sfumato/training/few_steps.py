"""The loop that distils a diffusion model into a student that samples in one to eight network calls.

The student is the teacher's network with two more inputs, the end of the step and the guidance scale, and learns the
flow map of the teacher's guided flow (`sfumato.diffusion.flow_map`). What it is to predict is made by one of three
methods (`sfumato.training.teaching`). The conditioner and the autoencoder stay the teacher's.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Self

import torch
from pydantic import Field, model_validator

from sfumato import rng
from sfumato.conditioning.condition import ConditionSpec
from sfumato.data.conditions.config import ConditionsConfig
from sfumato.data.dataset import LatentSource
from sfumato.data.table import DataConfig
from sfumato.denoiser.table import build_denoiser
from sfumato.diffusion.flow_map import Path as FlowPath
from sfumato.engine.training import for_training
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion, SecondStage
from sfumato.model_config import DiffusionConfig, Method, StudentConfig
from sfumato.pipeline.denoise import StudentNetwork
from sfumato.schema import Schema
from sfumato.training.averages import ema
from sfumato.training.data import HeldOut, check_one_size
from sfumato.training.diffusion import ConditionalDenoiser
from sfumato.training.optim import OptimiserConfig, build_optimiser, gradients_norm, learning_rate, read, set_rate
from sfumato.training.run import RunFolder
from sfumato.training.session import Periodic, open_session, resume
from sfumato.training.settings import Count, Decay, Mirrored, WholeNetworks
from sfumato.training.state import TrainState
from sfumato.training.steps import optimizer_step
from sfumato.training.teaching import Teacher, Teaching, lessons_of
from sfumato.training.workers import Workers


class FewStepTraining(WholeNetworks):
    """Length and settings of the distillation; a step uses batch · accumulate conditions."""

    steps: Count = 2000
    batch: Count = 16
    """Conditions of a step: with trajectories each gives teaching.pairs pairs, otherwise one."""
    optimiser: OptimiserConfig = OptimiserConfig(
        method="muon", learning_rate=2e-3, warmup_steps=50, tail_fraction=0.5, weight_decay=0.0
    )
    ema_decay: Decay = 0.99
    log_every: Count = 20
    preview_every: Count = 500
    save_every: Count = 200


class FewStepRun(Schema):
    """The configuration of `sfumato distill`."""

    teacher: Path
    """A model folder or run; its weights identify the run, too."""
    method: Method = "trajectories"
    """trajectories: regression on the teacher's sampled trajectories. On noised latents of the data, mean-flow: the
    identity of mean velocities, by central differences; consistency: a short step of the teacher followed by the
    student's own map equals that map from the beginning."""
    low: float = Field(1.0, ge=1, le=1000)
    high: float = Field(8.0, ge=1, le=1000)
    """The guidance scales of the student: it learns all of them, sampled log-uniformly."""
    teaching: Teaching = Teaching()
    data: DataConfig
    conditions: ConditionsConfig = ConditionsConfig()
    held_out: HeldOut = HeldOut()
    mirrored: Mirrored = False
    train: FewStepTraining = FewStepTraining()

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        check_one_size(self.data, "a distillation")
        return self

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}: swap them")
        return self


Preview = Callable[[ConditionalDenoiser, int], Mapping[str, float | list[float]]]
Export = Callable[[ConditionalDenoiser, TrainState], None]


def check_teacher(model: LatentDiffusion, name: str) -> SecondStage:
    """The second stage to distil. Raises UserError for a model that cannot be distilled."""
    if model.second is None:
        raise UserError(f"{name} is an autoencoder only: train a diffusion model on it, and distil that")
    student = model.second.config.student
    if student is not None:
        raise UserError(
            f"{name} is a student already: distil its teacher, the model {student.teacher}, for longer or with other "
            "settings"
        )
    FlowPath(model.second.schedule, model.second.config.prediction)
    return model.second


def check_conditions(teacher: LatentDiffusion, source: LatentSource) -> None:
    """Raises UserError if the data lacks what the teacher is conditioned on, or has classes that it does not know."""
    assert teacher.second is not None
    reads = () if teacher.second.conditioner is None else teacher.second.conditioner.reads
    missing = next((name for name in reads if name not in source.fields), None)
    if missing is not None:
        raise UserError(
            f"the teacher is conditioned on {missing}, but the data has the fields "
            f"{', '.join(source.fields) or 'none'}: give --data the images it was trained on, or others like them"
        )
    known, found = teacher.config.classes, source.classes
    if "label" in reads and known is not None and found is not None and tuple(known) != tuple(found):
        raise UserError(
            f"the data has the classes {', '.join(found[:6])}, but the teacher was trained on {', '.join(known[:6])}: "
            "give --data images with its classes"
        )


def student_of(teacher: LatentDiffusion, config: FewStepRun) -> LatentDiffusion:
    """The student before training, with the weights of its teacher: it predicts what the teacher does without
    guidance, whatever the end of the step. Raises UserError for a teacher that cannot be distilled."""
    second = check_teacher(teacher, f"the teacher {str(config.teacher)!r}")
    known = second.config
    guided = known.condition_dropout > 0 and second.conditioner is not None
    low, high = (config.low, config.high) if guided else (1.0, 1.0)
    described = DiffusionConfig(
        denoiser=known.denoiser.model_copy(update={"flow_map": True}),
        conditioner=known.conditioner,
        schedule=known.schedule,
        prediction=known.prediction,
        latents=known.latents,
        condition_dropout=known.condition_dropout,
        student=StudentConfig(teacher=teacher.digest, method=config.method, low=low, high=high),
    )
    spec = ConditionSpec() if second.conditioner is None else second.conditioner.spec
    with rng.seeded(config.train.seed, "weights", "student", device=torch.device("cpu")):
        denoiser = build_denoiser(described.denoiser, teacher.autoencoder.latent_channels, spec)
    weights = {**denoiser.state_dict(), **second.denoiser.state_dict()}
    denoiser.load_state_dict(weights)
    made = SecondStage(described, denoiser.to(teacher.device), second.conditioner, second.schedule)
    model_config = teacher.config.model_copy(update={"diffusion": described})
    return LatentDiffusion(model_config, teacher.autoencoder, teacher.scaling, made, teacher.tiny)


def train_few_steps(
    config: FewStepRun,
    teacher: LatentDiffusion,
    student: LatentDiffusion,
    latents: LatentSource,
    folder: RunFolder,
    preview: Preview,
    export: Export,
    workers: Workers | None = None,
) -> TrainState:
    """Trains the student's denoiser, or resumes the run in `folder`; returns the final state.

    Raises UserError if the folder holds another run, another teacher or other data, the disk fills up, or the loss
    stays non-finite.
    """
    train, workers = config.train, workers or Workers()
    assert student.second is not None
    second, conditioner = student.second, student.second.conditioner
    # eval: dropout would differ between the two points of a difference, and the teacher's trajectories have none
    network = workers.place(second.denoiser).eval().requires_grad_(True)
    averaged = ema.average_of(network)
    optimiser = build_optimiser(train.optimiser, network)
    state = TrainState({"denoiser": network, "ema": averaged}, {"denoiser": optimiser})
    resume(folder, state, latents, teacher.digest)
    for_training(network)
    assert second.config.student is not None
    learner = StudentNetwork(network, FlowPath(second.schedule, second.config.prediction))
    packed = Teacher(teacher, second.config.student, train.precision)
    lessons = lessons_of(config.method, config.teaching, packed, learner, train.precision)
    parameters = list(network.parameters())
    shown = ConditionalDenoiser(averaged, conditioner)
    tasks = [Periodic(train.preview_every, lambda: preview(shown, state.step))]
    with open_session(
        "distillation", latents, train, state, folder, workers, tasks, partial(export, shown, state)
    ) as session:
        while session.goes_on():
            t_start = time.monotonic()
            set_rate(optimiser, learning_rate(train.optimiser, state.step, session.done))
            loss_sum = torch.zeros((), device=workers.device)
            for micro in range(train.accumulate):
                batch = shown.prepared(next(session.data)).to(workers.device)
                generator = partial(rng.generator, train.seed, state.step, micro)
                loss = lessons(batch.moments, batch.fields, generator).mean() / train.accumulate
                loss.backward()
                loss_sum += loss.detach()

            norm, loss_value = read(gradients_norm(parameters), loss_sum)
            finite = optimizer_step(optimiser, train, parameters, norm, network, averaged, state)
            session.count(finite, time.monotonic() - t_start)
            rate = optimiser.param_groups[0]["lr"]
            session.record({"loss": loss_value, "gradient_norm": norm, "learning_rate": rate}, f"loss {loss_value:.4f}")
            session.finish()
    return state
