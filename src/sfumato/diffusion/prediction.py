"""Conversion between a network's prediction and the expected clean latent, for every kind of prediction.

With x_t = alpha · x0 + sigma · noise:
    eps   the noise                                   (Ho et al. 2020)
    x0    the clean latent
    v     alpha · noise - sigma · x0                  (Salimans & Ho 2022)
    flow  noise - x0, the velocity of a straight path (Liu et al. 2023)
None of the formulas assumes alpha² + sigma² = 1.
"""

from typing import Literal

from torch import Tensor

from sfumato.diffusion.process import broadcast
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import UserError

PredictionKind = Literal["eps", "x0", "v", "flow"]


def to_x0(
    kind: PredictionKind, prediction: Tensor, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float
) -> Tensor:
    """The clean latent (B, ...) that a prediction (B, ...) implies; alpha, sigma: one number or (B,).

    For eps, alpha must not be 0: see `check_prediction`.
    """
    a, b = broadcast(alpha, x_t), broadcast(sigma, x_t)
    match kind:
        case "eps":
            return (x_t - b * prediction) / a
        case "x0":
            return prediction
        case "v":
            return (a * x_t - b * prediction) / (a * a + b * b)
        case "flow":
            return (x_t - b * prediction) / (a + b)


def to_eps(
    kind: PredictionKind, prediction: Tensor, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float
) -> Tensor:
    """The noise (B, ...) that a prediction implies; for x0, sigma must not be 0."""
    a, b = broadcast(alpha, x_t), broadcast(sigma, x_t)
    match kind:
        case "eps":
            return prediction
        case "x0":
            return (x_t - a * prediction) / b
        case "v":
            return (b * x_t + a * prediction) / (a * a + b * b)
        case "flow":
            return (x_t + a * prediction) / (a + b)


def target(kind: PredictionKind, x0: Tensor, noise: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """The training target of a network of this kind, (B, ...), from the clean latent and the noise."""
    match kind:
        case "eps":
            return noise
        case "x0":
            return x0
        case "v":
            return broadcast(alpha, x0) * noise - broadcast(sigma, x0) * x0
        case "flow":
            return noise - x0


def convert(
    source: PredictionKind,
    to: PredictionKind,
    prediction: Tensor,
    x_t: Tensor,
    alpha: Tensor | float,
    sigma: Tensor | float,
) -> Tensor:
    """Converts a prediction from one kind to another."""
    if source == to:
        return prediction
    x0 = to_x0(source, prediction, x_t, alpha, sigma)
    noise = to_eps(source, prediction, x_t, alpha, sigma)
    return target(to, x0, noise, alpha, sigma)


def check_prediction(kind: PredictionKind, schedule: Schedule) -> None:
    """Raises UserError if the schedule's noisiest step contains no x0 but the network predicts the noise."""
    if kind == "eps" and schedule.zero_terminal:
        raise UserError(
            "prediction 'eps' does not determine x0 at t = 1 of this schedule, where alpha is 0: "
            "use prediction 'v' or 'flow', or a schedule without zero terminal SNR"
        )
