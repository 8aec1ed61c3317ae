"""Noise schedules: time t in [0, 1] -> (alpha, sigma), the weights of the clean latent and of the noise in x_t.

t = 0 is clean (alpha 1, sigma 0), t = 1 the noisiest. A schedule of T discrete steps is exact at t = (i + 1) / T, where
index i is the step the network was trained on. All values are float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from sfumato.schema import Schema

SNAP = 1e-9
"""Largest distance of t·T from an integer that still means that table entry; far above float64 rounding, far below
1."""


MOST_STEPS = 1_000_000
"""Bounds on T, the length of the table of noise levels."""


class DiscreteConfig(Schema):
    """Fields of every schedule defined by T betas."""

    steps: int = Field(1000, ge=2, le=MOST_STEPS)
    zero_terminal_snr: bool = False
    """Rescale so that alpha is exactly 0 at t = 1 (Lin et al. 2024, Algorithm 1); not for eps prediction."""


class ScaledLinearConfig(DiscreteConfig):
    """The paper's schedule: linear in sqrt(beta), then squared (named "scaled linear" elsewhere)."""

    kind: Literal["scaled-linear"] = "scaled-linear"
    start: float = Field(0.0015, gt=0, lt=1)
    end: float = Field(0.0195, gt=0, lt=1)


class LinearConfig(DiscreteConfig):
    """Betas linear in the index (Ho et al. 2020); the original calls it "sqrt_linear"."""

    kind: Literal["linear"] = "linear"
    start: float = Field(0.0001, gt=0, lt=1)
    end: float = Field(0.02, gt=0, lt=1)


class SqrtConfig(DiscreteConfig):
    """Betas that are the square root of a linear ramp; the original's "sqrt"."""

    kind: Literal["sqrt"] = "sqrt"
    start: float = Field(0.0001, gt=0, lt=1)
    end: float = Field(0.02, gt=0, lt=1)


class CosineConfig(DiscreteConfig):
    """alpha² = cos²(π/2 · (t + s) / (1 + s)) (Nichol & Dhariwal 2021, eq. 17), betas clipped at `max_beta`."""

    kind: Literal["cosine"] = "cosine"
    offset: float = Field(0.008, ge=0)
    max_beta: float = Field(0.999, gt=0, lt=1)


class SigmoidConfig(DiscreteConfig):
    """alpha² falls along a sigmoid from `start` to `end` (Jabri et al. 2023, Alg. 2), betas clipped at `max_beta`."""

    kind: Literal["sigmoid"] = "sigmoid"
    start: float = -3.0
    end: float = 3.0
    temperature: float = Field(1.0, gt=0)
    max_beta: float = Field(0.999, gt=0, lt=1)


class FlowConfig(Schema):
    """The straight path alpha = 1 - t, sigma = t (Liu et al. 2023; Lipman et al. 2023).

    `steps` only fixes the network's time scale, t · steps - 1.
    """

    kind: Literal["flow"] = "flow"
    steps: int = Field(1000, ge=2, le=MOST_STEPS)


ScheduleConfig = Annotated[
    ScaledLinearConfig | LinearConfig | SqrtConfig | CosineConfig | SigmoidConfig | FlowConfig,
    Field(discriminator="kind"),
]


class Schedule:
    """Interface: x_t = alpha(t) · x0 + sigma(t) · noise.

    `steps` is T, the number of steps that the network's time scale counts; `discrete`: whether the network was trained
    on the times (i + 1) / T alone; `zero_terminal`: whether alpha(1) = 0.
    """

    steps: int
    discrete: bool
    zero_terminal: bool

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(alpha, sigma), float64, of t's shape; raises ValueError for t outside [0, 1]."""
        raise NotImplementedError  # abstract

    def log_snr(self, t: Tensor | float) -> Tensor:
        """The half log-SNR, lambda = log(alpha / sigma): +inf at t = 0; falls strictly with t."""
        raise NotImplementedError  # abstract

    def time_of_log_snr(self, log_snr: Tensor | float) -> Tensor:
        """The inverse of `log_snr`; values below the schedule's lowest give t = 1."""
        raise NotImplementedError  # abstract


def _times(t: Tensor | float) -> Tensor:
    times = torch.as_tensor(t, dtype=torch.float64)
    if times.device.type == "cpu" and not bool(((times >= 0) & (times <= 1)).all()):
        raise ValueError(f"times must be in [0, 1] but range from {times.min().item():g} to {times.max().item():g}")
    return times


@dataclass(frozen=True)
class _Tables:
    """alphas, sigmas (T + 1,), from t = 0 on; log_snrs (T,)."""

    alphas: Tensor
    sigmas: Tensor
    log_snrs: Tensor


class DiscreteSchedule(Schedule):
    """A variance-preserving schedule given by its betas, interpolated between the table's points.

    Between two points lambda is linear in t. Below the first, sigma² is linear in t, giving (1, 0) at t = 0;
    in the last interval of a zero-terminal schedule, where lambda falls to -inf, alpha is linear in t. Every piece is
    strictly monotone, so `time_of_log_snr` is its exact inverse.
    """

    discrete = True

    def __init__(self, betas: Tensor) -> None:
        """betas: (T,) in (0, 1), the last one may be 1."""
        betas = betas.to(torch.float64)
        if betas.dim() != 1 or len(betas) < 2 or not bool(((betas > 0) & (betas <= 1)).all()):
            raise ValueError(
                f"betas must be a vector of at least two values in (0, 1], not {tuple(betas.shape)} values"
            )
        self.steps = len(betas)
        self.betas = betas
        self.alphas_cumprod = torch.cumprod(1 - betas, 0)
        self.zero_terminal = bool(self.alphas_cumprod[-1] == 0)
        one = torch.ones(1, dtype=torch.float64)
        squared = torch.cat([one, self.alphas_cumprod])
        self._alphas = squared.sqrt()
        self._sigmas = (1 - squared).sqrt()
        self._log_snrs = 0.5 * (torch.log(self.alphas_cumprod) - torch.log1p(-self.alphas_cumprod))
        self._copies: dict[torch.device, _Tables] = {}

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        position, nearest, on_table = self._position(_times(t))
        log_snr = self._log_snr_at(position)
        tables = self._tables(position.device)
        alpha = torch.where(on_table, tables.alphas[nearest], torch.sigmoid(2 * log_snr).sqrt())
        sigma = torch.where(on_table, tables.sigmas[nearest], torch.sigmoid(-2 * log_snr).sqrt())
        return alpha, sigma

    def log_snr(self, t: Tensor | float) -> Tensor:
        return self._log_snr_at(self._position(_times(t))[0])

    def time_of_log_snr(self, log_snr: Tensor | float) -> Tensor:
        value = torch.as_tensor(log_snr, dtype=torch.float64)
        tables = self._tables(value.device)
        falling = -tables.log_snrs
        i = torch.searchsorted(falling, -value).clamp(1, self.steps - 1)
        upper, lower = -falling[i - 1], -falling[i]
        position = i + (upper - value) / (upper - lower)
        if self.zero_terminal:
            from_alpha = self.steps - torch.sigmoid(2 * value).sqrt() / tables.alphas[-2]
            position = torch.where(value < upper, torch.where(lower.isinf(), from_alpha, position), i.double())
        first_variance = tables.sigmas[1].square()
        position = torch.where(value > -falling[0], torch.sigmoid(-2 * value) / first_variance, position)
        return (position / self.steps).clamp(0, 1)

    def _tables(self, device: torch.device) -> "_Tables":
        """On the device, copied there once: a copy in each call would make the host wait for the device."""
        if device not in self._copies:
            self._copies[device] = _Tables(*(t.to(device) for t in (self._alphas, self._sigmas, self._log_snrs)))
        return self._copies[device]

    def _position(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """t·T, the nearest table entry (entry 0 is t = 0), and whether t means that entry."""
        position = t * self.steps
        nearest = position.round()
        on_table = (position - nearest).abs() < SNAP
        return torch.where(on_table, nearest, position), nearest.long(), on_table

    def _log_snr_at(self, position: Tensor) -> Tensor:
        tables = self._tables(position.device)
        table = tables.log_snrs
        i = position.floor().long().clamp(1, self.steps - 1)
        weight = position - i
        inner = torch.lerp(table[i - 1], table[i], weight)
        if self.zero_terminal:
            alpha = tables.alphas[-2] * (self.steps - position)
            last = torch.log(alpha) - 0.5 * torch.log1p(-alpha.square())
            inner = torch.where(i == self.steps - 1, last, inner)
        variance = tables.sigmas[1].square() * position.clamp(max=1)
        first = 0.5 * (torch.log1p(-variance) - torch.log(variance))
        return torch.where(position < 1, first, inner)


class FlowSchedule(Schedule):
    """alpha = 1 - t, sigma = t: not variance-preserving, pure noise at t = 1."""

    discrete = False
    zero_terminal = True

    def __init__(self, steps: int = 1000) -> None:
        self.steps = steps

    def __call__(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        sigma = _times(t)
        return 1 - sigma, sigma.clone()

    def log_snr(self, t: Tensor | float) -> Tensor:
        return -torch.logit(_times(t))

    def time_of_log_snr(self, log_snr: Tensor | float) -> Tensor:
        return torch.sigmoid(-torch.as_tensor(log_snr, dtype=torch.float64))


def _ramp(start: float, end: float, steps: int) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _betas_of(alpha_squared: Callable[[Tensor], Tensor], steps: int, max_beta: float) -> Tensor:
    values = alpha_squared(_ramp(0, 1, steps + 1))
    return (1 - values[1:] / values[:-1]).clamp(0, max_beta)


def _cosine_betas(config: CosineConfig) -> Tensor:
    def alpha_squared(t: Tensor) -> Tensor:
        return torch.cos((t + config.offset) / (1 + config.offset) * torch.pi / 2).square()

    return _betas_of(alpha_squared, config.steps, config.max_beta)


def _sigmoid_betas(config: SigmoidConfig) -> Tensor:
    def alpha_squared(t: Tensor) -> Tensor:
        ramp = torch.sigmoid((t * (config.end - config.start) + config.start) / config.temperature)
        return (ramp[-1] - ramp) / (ramp[-1] - ramp[0])

    return _betas_of(alpha_squared, config.steps, config.max_beta)


def betas_of(config: ScheduleConfig) -> Tensor:
    """The (T,) float64 betas of a discrete schedule, before any zero-terminal rescaling."""
    match config:
        case ScaledLinearConfig():
            return _ramp(config.start**0.5, config.end**0.5, config.steps).square()
        case LinearConfig():
            return _ramp(config.start, config.end, config.steps)
        case SqrtConfig():
            return _ramp(config.start, config.end, config.steps).sqrt()
        case CosineConfig():
            return _cosine_betas(config)
        case SigmoidConfig():
            return _sigmoid_betas(config)
        case FlowConfig():
            raise ValueError("the flow schedule is continuous and has no betas")


def zero_terminal(betas: Tensor) -> Tensor:
    """Shifts and scales alpha so that it keeps its first value and ends at exactly 0 (Lin et al. 2024, Algorithm 1)."""
    alphas = torch.cumprod(1 - betas, 0).sqrt()
    alphas = (alphas - alphas[-1]) * (alphas[0] / (alphas[0] - alphas[-1]))
    squared = alphas.square()
    ratios = torch.cat([squared[:1], squared[1:] / squared[:-1]])
    return 1 - ratios


def build_schedule(config: ScheduleConfig) -> Schedule:
    """The schedule of a configuration."""
    if isinstance(config, FlowConfig):
        return FlowSchedule(config.steps)
    betas = betas_of(config)
    return DiscreteSchedule(zero_terminal(betas) if config.zero_terminal_snr else betas)
