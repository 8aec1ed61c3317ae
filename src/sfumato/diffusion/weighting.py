"""Loss weights of errors at different times.

Weightings are written as a weight on ||x0 error||², the form in which their papers compare them; a prediction of
another kind scales the error by a known factor (`error_scale`), and its loss is divided by it.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.diffusion.prediction import PredictionKind
from sfumato.diffusion.schedule import Schedule
from sfumato.schema import Schema

LOG_SNR_LIMIT = 8.0
"""Beyond this half log-SNR (alpha / sigma = e^±8) times are treated as equal: at t = 1 of some schedules it is
infinite."""


class UniformWeighting(Schema):
    """Weight 1 on the predicted quantity's error: the paper's simple loss."""

    kind: Literal["uniform"] = "uniform"


class MinSnrWeighting(Schema):
    """min(SNR, gamma) on the x0 error (Hang et al. 2023)."""

    kind: Literal["min-snr"] = "min-snr"
    gamma: float = Field(5.0, gt=0)


class SoftMinSnrWeighting(Schema):
    """SNR · gamma / (SNR + gamma) on the x0 error: a smooth min-snr (Crowson et al. 2024)."""

    kind: Literal["soft-min-snr"] = "soft-min-snr"
    gamma: float = Field(5.0, gt=0)


class P2Weighting(Schema):
    """SNR / (k + SNR)^gamma on the x0 error (Choi et al. 2022); gamma 0 is the simple loss of an eps model."""

    kind: Literal["p2"] = "p2"
    gamma: float = Field(1.0, ge=0)
    k: float = Field(1.0, gt=0)


class LearnedWeighting(Schema):
    """exp(-u(t)) with u learned with the model, so that every time contributes equally (Karras et al. 2024, EDM2).

    u is one linear layer on Fourier features of the half log-SNR. It is part of the training, not of the model.
    """

    kind: Literal["learned"] = "learned"
    features: int = Field(128, ge=1)


Weighting = Annotated[
    UniformWeighting | MinSnrWeighting | SoftMinSnrWeighting | P2Weighting | LearnedWeighting,
    Field(discriminator="kind"),
]


class LogVariance(nn.Module):
    """u(t), the log of the error to expect at time t; 0 everywhere before training (Karras et al. 2024, section 2).

    Minimising error · exp(-u) + u over u gives u = log E[error | t]: the weighted error is then 1 at every time. The
    random frequencies and phases are buffers, initialised from torch's global generator.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, config: LearnedWeighting) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 * torch.pi * torch.randn(config.features))
        self.register_buffer("phases", 2 * torch.pi * torch.rand(config.features))
        self.linear = nn.Linear(config.features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, log_snr: Tensor) -> Tensor:
        """u (B,) float32 at the half log-SNRs (B,); infinite ones are clamped to ±8."""
        device = self.frequencies.device
        noise_level = (log_snr.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT) / -4).float().to(device)  # EDM's c_noise
        features = 2**0.5 * torch.cos(noise_level[:, None] * self.frequencies + self.phases)
        out: Tensor = self.linear(features)[:, 0]
        return out


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


def weight(weighting: Weighting, kind: PredictionKind, schedule: Schedule, t: Tensor) -> Tensor:
    """The fixed weight of the predicted quantity's error at times t in (0, 1]; float64, of t's shape.

    1 for the learned weighting, whose weight is in `LogVariance`.
    """
    if isinstance(weighting, UniformWeighting | LearnedWeighting):
        return torch.ones_like(t, dtype=torch.float64)
    alpha, sigma = schedule(t)
    snr = (alpha / sigma).square()
    scale = error_scale(kind, alpha, sigma)
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
    2020, eq. 12). Times in the first step, where the bound's term is a likelihood of another form, use the second
    step's weight, as in the original.
    """
    t = t.to(torch.float64).clamp(min=2 / schedule.steps)
    alpha, sigma = schedule(t)
    before = (schedule.log_snr((t - 1 / schedule.steps).clamp(min=0)) * 2).exp()
    return 0.5 * (before - (alpha / sigma).square()) / error_scale(kind, alpha, sigma)
