"""UniPC (Zhao et al.

2023): a predictor of order 1 to 3, each prediction corrected with the next step's network call.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sfumato.diffusion.schedule import Schedule
from sfumato.errors import UserError
from sfumato.sampling.sampler import Denoise, History, Level, Noise, exponential_moments, first_order, levels
from sfumato.schema import Schema


class UniPCConfig(Schema):
    """Predictor-corrector multistep: one network call a step."""

    kind: Literal["unipc"] = "unipc"
    order: int = Field(2, ge=1, le=3)
    scale: Literal["bh1", "bh2"] = "bh2"
    """B(h), relevant where there are fewer free points than the order: h (bh1) or e^h - 1 (bh2, which the paper
    recommends)."""


@dataclass(frozen=True)
class Past:
    """The previous step: its start (x and level), its order, and the predictions up to it."""

    x: Tensor
    start: Level
    order: int
    history: History


@dataclass(frozen=True)
class UniPC:
    """UniP-p and UniC-p on the clean latent (Algorithms 5-8). Raises UserError for an order other than 1, 2, 3."""

    order: int = 2
    scale: Literal["bh1", "bh2"] = "bh2"

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise UserError(f"unipc's order is {self.order}: choose 1, 2 or 3")

    def init(self) -> Past | None:
        return None

    def step(
        self, denoise: Denoise, schedule: Schedule, x_t: Tensor, t: Tensor, s: Tensor, state: Past | None, noise: Noise
    ) -> tuple[Tensor, Past | None]:
        now, then = levels(schedule, t, s)
        x0 = denoise(x_t, t)
        if state is not None:
            x_t = self._update(state.x, state.start, now, state.history, state.order, x0)
        history = (History() if state is None else state.history).push(x0, now.log_snr, keep=self.order)
        if math.isinf(then.log_snr - now.log_snr):
            return first_order(x_t, x0, now, then), None
        order = min(self.order, len(history.predictions))
        x_s = self._update(x_t, now, then, history, order, None)
        return x_s, Past(x_t, now, order, history)

    def _update(
        self, x: Tensor, start: Level, end: Level, history: History, order: int, ahead: Tensor | None
    ) -> Tensor:
        """From `start` to `end` with `order` earlier predictions and, when correcting, the one at the end (`ahead`)."""
        h = end.log_snr - start.log_snr
        x0 = history.predictions[0]
        ratios = [(lam - start.log_snr) / h for lam in history.log_snrs[1:order]]
        slopes = [(m - x0) / r for m, r in zip(history.predictions[1:order], ratios, strict=True)]
        if ahead is not None:
            ratios.append(1.0)
            slopes.append(ahead - x0)
        x_s = first_order(x, x0, start, end)
        for weight, slope in zip(self._weights(h, ratios), slopes, strict=True):
            x_s = x_s + end.alpha * weight * slope
        return x_s

    def _weights(self, h: float, ratios: list[float]) -> list[float]:
        """Weights of the slopes, so that all polynomials the points determine are integrated exactly.

        With a single point the paper sets the weight to B(h) / 2, which is exact only to the order.
        """
        if not ratios:
            return []
        scale = h if self.scale == "bh1" else -math.expm1(-h)
        if len(ratios) == 1:
            return [scale / 2]
        n = len(ratios)
        powers = torch.tensor([[r**k for r in ratios] for k in range(n)], dtype=torch.float64)
        moments = torch.tensor(exponential_moments(h, n + 1)[1:], dtype=torch.float64)
        weights: list[float] = torch.linalg.solve(powers, moments).tolist()
        return weights
