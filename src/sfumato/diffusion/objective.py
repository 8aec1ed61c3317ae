"""The training objective of the diffusion model: draw times and noise, compare prediction and target, weigh.

Weightings are written as a weight on ||x0 error||², which is how their papers compare; a prediction of another kind
stretches the error by a known factor (`error_scale`), and its loss is divided by it.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from sfumato.diffusion.prediction import PredictionKind, check_prediction, target
from sfumato.diffusion.process import broadcast, time_of_index
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import UserError
from sfumato.schema import Schema


class DiscreteTimes(Schema):
    """Every training index equally often: the paper's draw."""

    kind: Literal["discrete"] = "discrete"


class UniformTimes(Schema):
    """Uniform over (low, high], not bound to the table."""

    kind: Literal["uniform"] = "uniform"
    low: float = Field(0.0, ge=0, lt=1)
    high: float = Field(1.0, gt=0, le=1)


class LogitNormalTimes(Schema):
    """sigmoid of a Gaussian: more weight on the middle times (Esser et al. 2024, section 3.1)."""

    kind: Literal["logit-normal"] = "logit-normal"
    mean: float = 0.0
    std: float = Field(1.0, gt=0)


TimeDensity = Annotated[DiscreteTimes | UniformTimes | LogitNormalTimes, Field(discriminator="kind")]


class UniformWeighting(Schema):
    """Weight 1 on the predicted quantity's error: the paper's simple loss."""

    kind: Literal["uniform"] = "uniform"


class MinSnrWeighting(Schema):
    """min(SNR, gamma) on the x0 error (Hang et al. 2023)."""

    kind: Literal["min-snr"] = "min-snr"
    gamma: float = Field(5.0, gt=0)


class SoftMinSnrWeighting(Schema):
    """SNR · gamma / (SNR + gamma) on the x0 error: min-snr without the corner (Crowson et al. 2024)."""

    kind: Literal["soft-min-snr"] = "soft-min-snr"
    gamma: float = Field(5.0, gt=0)


class P2Weighting(Schema):
    """SNR / (k + SNR)^gamma on the x0 error (Choi et al. 2022); gamma 0 is the simple loss of an eps model."""

    kind: Literal["p2"] = "p2"
    gamma: float = Field(1.0, ge=0)
    k: float = Field(1.0, gt=0)


Weighting = Annotated[
    UniformWeighting | MinSnrWeighting | SoftMinSnrWeighting | P2Weighting, Field(discriminator="kind")
]


class ObjectiveConfig(Schema):
    """What the denoiser learns; the defaults are the paper's."""

    prediction: PredictionKind = "eps"
    times: TimeDensity = DiscreteTimes()
    stratified: bool = False
    """Spread a batch's times evenly over the density instead of drawing them independently: less noise in the loss."""
    weighting: Weighting = UniformWeighting()
    loss: Literal["l2", "l1", "huber"] = "l2"
    huber_delta: float = Field(0.1, gt=0)
    """Where the Huber loss turns from quadratic to linear."""
    elbo_weight: float = Field(0.0, ge=0)
    """Adds this times the variational bound's weighting of the same error (the original's original_elbo_weight)."""
    offset_noise: float = Field(0.0, ge=0)
    """Standard deviation of an extra noise that is constant over each channel; 0 is off."""


def check_objective(config: ObjectiveConfig, schedule: Schedule) -> None:
    """Raises UserError where the objective cannot be trained on this schedule."""
    check_prediction(config.prediction, schedule)
    times = config.times
    if isinstance(times, UniformTimes) and times.low >= times.high:
        raise UserError(f"times.low {times.low:g} must be below times.high {times.high:g}: swap them")


def draw_times(config: ObjectiveConfig, n: int, generator: torch.Generator, schedule: Schedule) -> Tensor:
    """n times in (0, 1], float64 on the generator's device, drawn by inverting the density's distribution function.

    Stratified draws put one in each of n slices of equal probability, in random order.
    """
    device = generator.device
    uniform = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
    if config.stratified:
        slices = torch.randperm(n, generator=generator, device=device)
        uniform = (slices + uniform) / n
    times = config.times
    match times:
        case DiscreteTimes():
            index = (uniform * schedule.steps).floor().clamp(max=schedule.steps - 1)
            return time_of_index(index, schedule.steps)
        case UniformTimes():
            return times.high - (times.high - times.low) * uniform  # torch.rand never gives 1, so t never is 0
        case LogitNormalTimes():
            smallest = torch.finfo(torch.float64).tiny
            return torch.sigmoid(times.mean + times.std * torch.special.ndtri(uniform.clamp(min=smallest)))


def draw_noise(
    config: ObjectiveConfig, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Noise (B, C, ...) on the generator's device, with the configured offset per sample and channel added."""
    noise = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
    if config.offset_noise == 0:
        return noise
    flat = (*shape[:2], *[1] * (len(shape) - 2))
    return noise + config.offset_noise * torch.randn(flat, generator=generator, dtype=dtype, device=generator.device)


def error_scale(kind: PredictionKind, alpha: Tensor, sigma: Tensor) -> Tensor:
    """||error of the prediction||² over ||error of the x0 it implies||², for the same x_t; alpha and sigma's shape."""
    match kind:
        case "eps":
            return (alpha / sigma).square()
        case "x0":
            return torch.ones_like(alpha)
        case "v":
            return ((alpha.square() + sigma.square()) / sigma).square()
        case "flow":
            return ((alpha + sigma) / sigma).square()


def loss_weight(config: ObjectiveConfig, schedule: Schedule, t: Tensor) -> Tensor:
    """The weight of the predicted quantity's error at times t in (0, 1]; float64, of t's shape."""
    weighting = config.weighting
    if isinstance(weighting, UniformWeighting):
        return torch.ones_like(t, dtype=torch.float64)
    alpha, sigma = schedule(t)
    snr = (alpha / sigma).square()
    scale = error_scale(config.prediction, alpha, sigma)
    match weighting:
        case MinSnrWeighting():
            return snr.clamp(max=weighting.gamma) / scale
        case SoftMinSnrWeighting():
            return snr * weighting.gamma / (snr + weighting.gamma) / scale
        case P2Weighting():
            return snr / (weighting.k + snr) ** weighting.gamma / scale


def elbo_weight(kind: PredictionKind, schedule: Schedule, t: Tensor) -> Tensor:
    """The weight that makes the l2 error a term of the T-step variational bound.

    On the x0 error it is (SNR(s) - SNR(t)) / 2 with s = t - 1/T (Kingma et al. 2021, eq. 13; for eps that is Ho et al.
    2020, eq. 12). Times in the first step, where the bound's term is a likelihood of another form, take the second
    step's weight, as the original does.
    """
    t = t.to(torch.float64).clamp(min=2 / schedule.steps)
    alpha, sigma = schedule(t)
    before = (schedule.log_snr((t - 1 / schedule.steps).clamp(min=0)) * 2).exp()
    return 0.5 * (before - (alpha / sigma).square()) / error_scale(kind, alpha, sigma)


def loss(
    config: ObjectiveConfig, schedule: Schedule, prediction: Tensor, x0: Tensor, noise: Tensor, t: Tensor
) -> Tensor:
    """The loss per sample (B,), float32 or wider: the mean over all axes but the first, weighted.

    prediction, x0, noise (B, ...); t (B,) in (0, 1].
    """
    alpha, sigma = schedule(t)
    if prediction.dtype in (torch.float16, torch.bfloat16):
        prediction = prediction.float()
    wanted = target(config.prediction, x0.to(prediction.dtype), noise.to(prediction.dtype), alpha, sigma)
    match config.loss:
        case "l2":
            error = (prediction - wanted).square()
        case "l1":
            error = (prediction - wanted).abs()
        case "huber":
            error = torch.nn.functional.huber_loss(prediction, wanted, reduction="none", delta=config.huber_delta)
    per_sample = error.flatten(1).mean(1)
    weight = loss_weight(config, schedule, t)
    if config.elbo_weight > 0:
        weight = weight + config.elbo_weight * elbo_weight(config.prediction, schedule, t)
    return per_sample * broadcast(weight, per_sample)
