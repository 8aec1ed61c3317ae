"""Training targets of a student, by three methods, from a teacher's network.

trajectories: points of the teacher's guided sampling trajectories from fresh noise; the student regresses the mean
velocity from one point to a later one, often to the last (consistency mid-training, Hu et al. 2025, with two times).
mean-flow: the identity u = v - (t - r) du/dt (Geng et al. 2025) at noised latents of the data, with the teacher's
guided velocity as v and du/dt as a central difference; where r = t it is plain regression on the teacher's velocity.
consistency: the map from t to r is the teacher's short step from t to m followed by the student's own map from m to r
(easy consistency tuning, Geng et al. 2024, arXiv 2406.14548, for any r in place of r = 0).
"""

import abc
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from sfumato.conditioning.condition import Condition, Fields, select, stack, take
from sfumato.diffusion.flow_map import (
    Path,
    adaptive,
    composed_target,
    log_uniform,
    mapped,
    mean_flow_target,
    mean_velocity,
    pseudo_huber,
    total_derivative,
)
from sfumato.diffusion.process import broadcast, timestep_like
from sfumato.engine.inference import for_inference
from sfumato.engine.precision import Precision, autocast, dtype_of
from sfumato.model import LatentDiffusion
from sfumato.model_config import Method, StudentConfig
from sfumato.pipeline.denoise import Guidance, Network, StudentNetwork, guided
from sfumato.pipeline.parts import second_stage
from sfumato.sampling.dpm_solver import DPM2M, DPM2MConfig
from sfumato.sampling.grids import build_grid
from sfumato.sampling.loop import Step
from sfumato.sampling.loop import sample as sampling_loop
from sfumato.sampling.table import default_grid
from sfumato.schema import Schema

Generators = Callable[[str], torch.Generator]
"""The generator of a step for a purpose."""

Lessons = Callable[[Tensor, Fields, Generators], Tensor]
"""(moments (B, M, h, w), prepared fields, generators of the step) -> the loss of each pair (N,), with gradients."""


class Teaching(Schema):
    """Constants of the two methods."""

    solver_steps: int = Field(16, ge=2, le=1000)
    """trajectories: steps of DPM-Solver++(2M) along which the teacher samples."""
    pairs: int = Field(16, ge=1, le=1000)
    """trajectories: pairs of points of each that a step learns from."""
    to_end: float = Field(0.5, ge=0, le=1)
    """trajectories: share of the pairs whose second point is the last, the image."""
    noisy: float = Field(2.0, ge=1, le=10)
    """trajectories: first points are sampled at the share u ** noisy of the trajectory, u uniform: above 1 favours its
    noisy beginning, where one long step is hardest."""
    anchors: float = Field(0.5, ge=0, le=1)
    """mean-flow, consistency: share of the samples with r = t, the teacher's velocity itself."""
    whole: float = Field(0.25, ge=0, le=1)
    """mean-flow, consistency: share of the samples with r = 0, half of them from pure noise."""
    nearness: float = Field(64.0, ge=6, le=4096)
    """consistency: the teacher's step goes from t to t · (1 - (1 + 8 sigmoid(-t)) / nearness), 5 to 8 % of the way to 0
    at 64."""
    unconditional: float = Field(0.1, ge=0, le=1)
    """Share of the conditions that are replaced by the null one, without guidance."""


@dataclass(frozen=True)
class Lesson:
    """Conditions of a step's samples, their null conditions, and guidance scales (B,)."""

    condition: Condition
    null: Condition | None
    scale: Tensor

    def take(self, rows: Tensor) -> "Lesson":
        """The samples of `rows`, without the null conditions, which the student does not take."""
        return Lesson(take(self.condition, rows), None, self.scale[rows])


class Teacher:
    """A teacher's network, packed for fast calls, and what makes latents and conditions for it.

    The model itself stays as it is.
    """

    def __init__(self, model: LatentDiffusion, student: StudentConfig, precision: Precision) -> None:
        second = second_stage(model)
        packed = for_inference(copy.deepcopy(second.denoiser), dtype_of(precision, model.device))
        self.network = Network(packed, second.schedule, second.config.prediction)
        self.path = Path(second.schedule, second.config.prediction)
        self.conditioner = second.conditioner
        self.autoencoder, self.scaling = model.autoencoder, model.scaling
        self.dropout = second.config.condition_dropout
        self.latents = second.config.latents
        self.student = student

    @torch.no_grad()
    def lesson(self, fields: Fields, like: Tensor, unconditional: float, generator: Generators) -> Lesson:
        """The conditions of prepared fields for latents (B, C, h, w), a share of them null, and scales sampled for
        them."""
        B = len(like)
        if self.conditioner is None:
            return Lesson(Condition(), None, torch.ones(B, device=like.device))
        condition = self.conditioner(fields)
        if self.dropout == 0:
            return Lesson(condition, None, torch.ones(B, device=like.device))
        null = self.conditioner.null(B, (like.shape[2], like.shape[3]))
        kept = (torch.rand(B, generator=generator("condition")) >= unconditional).to(like.device)
        scale = log_uniform(self.student.low, self.student.high, torch.rand(B, generator=generator("scale")))
        return Lesson(select(kept, condition, null), null, torch.where(kept, scale.to(like.device), 1.0))

    @torch.no_grad()
    def trajectories(self, noise: Tensor, lesson: Lesson, grid: Tensor) -> Tensor:
        """The points (S + 1, B, C, h, w) of guided trajectories from noise (B, C, h, w) at the times of a grid."""
        points = [noise]

        def keep(step: Step) -> None:
            points.append(step.x)

        denoise = guided(self.network, lesson.condition, lesson.null, Guidance(lesson.scale))
        sampling_loop(DPM2M(), self.network.schedule, denoise, noise, grid, _no_noise, keep)
        return torch.stack(points)

    @torch.no_grad()
    def velocity(self, x_t: Tensor, time: Tensor, lesson: Lesson) -> Tensor:
        """The guided velocity on the path (B, C, h, w) at x_t (B, C, h, w) and times (B,) of the schedule."""
        given = [lesson.condition] if lesson.null is None else [lesson.condition, lesson.null]
        times = timestep_like(time, self.network.schedule.steps, x_t)
        n = len(given)
        predicted = self.network.denoiser(torch.cat([x_t] * n), times.repeat(n), stack(given)).to(x_t.dtype)
        velocities = [self.path.velocity(part, x_t, time) for part in predicted.chunk(n)]
        if n == 1:
            return velocities[0]
        conditional, null = velocities
        return null + broadcast(lesson.scale, null) * (conditional - null)


def lessons_of(
    method: Method,
    teaching: Teaching,
    teacher: Teacher,
    student: StudentNetwork,
    precision: Precision,
) -> Lessons:
    """The lessons of a method; `student` is the network that is trained."""
    kinds: dict[Method, type[Trajectories] | type[MeanFlow] | type[Consistency]]
    kinds = {"trajectories": Trajectories, "mean-flow": MeanFlow, "consistency": Consistency}
    return kinds[method](teaching, teacher, student, precision)


class Trajectories:
    """Pairs of points of the teacher's trajectories. All noise is new: there is nothing to memorise."""

    def __init__(self, teaching: Teaching, teacher: Teacher, student: StudentNetwork, precision: Precision) -> None:
        self.teaching, self.teacher, self.student, self.precision = teaching, teacher, student, precision
        schedule = teacher.network.schedule
        self.grid = build_grid(default_grid(DPM2MConfig(), schedule), schedule, teaching.solver_steps)

    def __call__(self, moments: Tensor, fields: Fields, generator: Generators) -> Tensor:
        B, _, h, w = moments.shape
        shape = (B, self.teacher.autoencoder.latent_channels, h, w)
        noise = torch.randn(shape, generator=generator("noise")).to(moments.device)
        lesson = self.teacher.lesson(fields, noise, self.teaching.unconditional, generator)
        points = self.teacher.trajectories(noise, lesson, self.grid)
        i, j = self.pairs(B, generator)
        row = torch.arange(B).repeat_interleave(self.teaching.pairs)
        path, x_t, x_s = self.student.path, points[i, row], points[j, row]
        time, end = self.grid[i].to(moments.device), self.grid[j].to(moments.device)
        z_t, z_s = (x / broadcast(path.length(when), x) for x, when in ((x_t, time), (x_s, end)))
        wanted = mean_velocity(z_t, z_s, path.of_time(time), path.of_time(end))
        row = row.to(moments.device)
        with autocast(moments.device, self.precision):
            u = self.student.velocity(x_t, time, end, lesson.scale[row], take(lesson.condition, row))
        return pseudo_huber(u, wanted)

    def pairs(self, count: int, generator: Generators) -> tuple[Tensor, Tensor]:
        """Indices (count · pairs,) of the first and the second point, i < j; the first ones stratified."""
        S, K = self.teaching.solver_steps, self.teaching.pairs
        g = generator("pairs")
        share = (torch.arange(K) + torch.rand(count, K, generator=g)) / K
        i = (S * share**self.teaching.noisy).long().clamp(max=S - 1)
        j = i + 1 + ((S - i) * torch.rand(count, K, generator=g)).long().clamp(max=S - 1)
        j = torch.where(torch.rand(count, K, generator=g) < self.teaching.to_end, S, j.clamp(max=S))
        return i.flatten(), j.flatten()


@dataclass(frozen=True)
class Noised:
    """Noised latents z_t (B, C, h, w) of the data on the path, path times t and r <= t (B,), and the teacher's guided
    velocity there."""

    z_t: Tensor
    t: Tensor
    r: Tensor
    v: Tensor
    lesson: Lesson


class AtNoisedLatents(abc.ABC):
    """Lessons at noised latents of the data, from the teacher's velocity there and the student itself."""

    log_odds: tuple[float, float]
    """Mean and standard deviation of log(t / (1 - t)), where t is neither 1 nor decided otherwise."""

    def __init__(self, teaching: Teaching, teacher: Teacher, student: StudentNetwork, precision: Precision) -> None:
        self.teaching, self.teacher, self.student, self.precision = teaching, teacher, student, precision

    @abc.abstractmethod
    def loss(self, at: Noised) -> Tensor:
        """The loss of each sample (B,), with gradients."""

    def __call__(self, moments: Tensor, fields: Fields, generator: Generators) -> Tensor:
        teacher, path = self.teacher, self.student.path
        x0 = self._latents(moments, generator)
        noise = torch.randn(x0.shape, generator=generator("noise")).to(x0)
        lesson = teacher.lesson(fields, x0, self.teaching.unconditional, generator)
        t, r = (times.to(x0.device) for times in self.times(len(x0), generator))
        z_t = (1 - broadcast(t, x0)) * x0 + broadcast(t, x0) * noise
        time = path.to_time(t)
        v = teacher.velocity(broadcast(path.length(time), z_t) * z_t, time, lesson)
        return self.loss(Noised(z_t, t, r, v, lesson))

    @torch.no_grad()
    def _latents(self, moments: Tensor, generator: Generators) -> Tensor:
        """Model latents from the moments of cached ones: samples or means, as the teacher was trained on."""
        autoencoder, scaling = self.teacher.autoencoder, self.teacher.scaling
        if self.teacher.latents == "mean":
            return scaling.to_model(autoencoder.latent_from_moments(moments))
        shape = (len(moments), autoencoder.latent_channels, *moments.shape[2:])
        posterior = torch.randn(shape, generator=generator("posterior")).to(moments.device)
        return scaling.to_model(autoencoder.latent_from_moments(moments, posterior))

    def times(self, count: int, generator: Generators) -> tuple[Tensor, Tensor]:
        """t and r <= t (count,), float64: sorted pairs of sigmoid(N(`log_odds`)), or r = t, or r = 0."""
        g, path = generator("times"), self.student.path
        mean, std = self.log_odds
        pair = torch.sigmoid(std * torch.randn(2, count, generator=g, dtype=torch.float64) + mean)
        t, r = pair.max(0).values, pair.min(0).values
        kind = (torch.randperm(count, generator=g) + torch.rand(count, generator=g)) / count
        anchors, whole = self.teaching.anchors, self.teaching.anchors + self.teaching.whole
        r = torch.where(kind < anchors, t, torch.where(kind < whole, 0.0, r))
        pure = (kind >= anchors) & (kind < (anchors + whole) / 2)
        t = torch.where(pure, path.noisiest, t).clamp(path.first, path.noisiest)
        return t, torch.minimum(r, t)

    def mean_velocity(self, z: Tensor, t: Tensor, r: Tensor, lesson: Lesson) -> Tensor:
        """The student's u(z, t, r) (B, C, h, w) at path times (B,)."""
        path, time = self.student.path, self.student.path.to_time(t)
        x_t = broadcast(path.length(time), z) * z
        return self.student.velocity(x_t, time, path.to_time(r), lesson.scale, lesson.condition)

    def predicted(self, at: Noised) -> Tensor:
        """The student's mean velocity at the samples, in the precision of the training."""
        with autocast(at.z_t.device, self.precision):
            return self.mean_velocity(at.z_t, at.t, at.r, at.lesson)


class MeanFlow(AtNoisedLatents):
    """The identity of mean velocities; times as in "Mean Flows", section 4.3 (Geng et al. 2025)."""

    log_odds = (-0.4, 1.0)

    def loss(self, at: Noised) -> Tensor:
        wanted = mean_flow_target(at.v, self._derivative(at), at.t, at.r)
        return adaptive(self.predicted(at), wanted)

    @torch.no_grad()
    def _derivative(self, at: Noised) -> Tensor:
        """du/dt, zero where r = t does not need it; in float32, as it is a small difference of large numbers."""
        derivative = torch.zeros_like(at.z_t)
        needed = (at.r < at.t).nonzero().flatten()
        if len(needed):
            u = partial(self.mean_velocity, lesson=at.lesson.take(needed))
            z_t, t, r, v = at.z_t[needed], at.t[needed], at.r[needed], at.v[needed]
            derivative[needed] = total_derivative(u, z_t, t, r, v, self.student.path.noisiest)
        return derivative


class Consistency(AtNoisedLatents):
    """Easy consistency tuning, in this form: one map is composed of two, the first by the teacher.

    The times, the ratio of neighbouring ones and the weight 1 / (t - m) are those of Geng et al. 2024 (arXiv
    2406.14548, section 3), with the path's t in place of its noise level in the ratio. Theirs ends at r = 0 only and
    takes the velocity of the data; here any r is possible, and the teacher's guided velocity makes guidance an input.
    """

    log_odds = (-1.1, 2.0)

    def loss(self, at: Noised) -> Tensor:
        middle = self.between(at.t, at.r)
        share = torch.where(at.r < at.t, (at.t - middle) / (at.t - at.r).clamp(min=1e-9), 1.0)
        wanted = self._composed(at, middle, share)
        scale = 1 / broadcast(share, wanted)
        return pseudo_huber(scale * self.predicted(at), scale * wanted)

    def between(self, t: Tensor, r: Tensor) -> Tensor:
        """The end m of the teacher's step from t (B,), r <= m < t; t where r = t."""
        return torch.maximum(t * (1 - (1 + 8 * torch.sigmoid(-t)) / self.teaching.nearness), r)

    @torch.no_grad()
    def _composed(self, at: Noised, middle: Tensor, share: Tensor) -> Tensor:
        """The mean velocity of the teacher's step to `middle` and the student's map from there."""
        composed = at.v.clone()
        needed = (middle > at.r).nonzero().flatten()
        if len(needed):
            v, m, r = at.v[needed], middle[needed], at.r[needed]
            z_m = mapped(at.z_t[needed], at.t[needed], m, v)
            with autocast(z_m.device, self.precision):
                rest = self.mean_velocity(z_m, m, r, at.lesson.take(needed))
            composed[needed] = composed_target(v, rest, share[needed])
        return composed


def _no_noise(shape: object) -> Tensor:
    raise AssertionError("DPM-Solver++(2M) is deterministic")
