"""PLMS, the paper's fast sampler (Liu et al. 2022), exactly as the original runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sfumato.diffusion.schedule import Schedule
from sfumato.errors import UserError
from sfumato.sampling.sampler import Denoise, Level, Noise, levels
from sfumato.schema import Schema

WEIGHTS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Adams-Bashforth: the weights of the last one to four noise predictions, newest first."""


NEEDS_SIGNAL = (
    "sampler 'plms' cannot start where alpha is 0 (flow, zero terminal SNR): use 'dpmpp-2m', or grid 'leading'"
)


class PLMSConfig(Schema):
    """Linear multistep on the noise prediction: one network call a step, plus one in total."""

    kind: Literal["plms"] = "plms"


@dataclass(frozen=True)
class PLMS:
    """DDIM steps with a noise prediction extrapolated from up to four steps.

    The first step averages the predictions at its two ends (pseudo improved Euler). The extrapolation assumes equal
    steps on any grid, as the original does. `project` is as in DDIM.
    """

    project: Callable[[Tensor], Tensor] | None = None

    def init(self) -> tuple[Tensor, ...]:
        return ()

    def step(
        self,
        denoise: Denoise,
        schedule: Schedule,
        x_t: Tensor,
        t: Tensor,
        s: Tensor,
        state: tuple[Tensor, ...],
        noise: Noise,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As in the contract; raises UserError where alpha is 0, since x_t does not determine a clean latent there."""
        now, then = levels(schedule, t, s)
        if now.alpha == 0:
            raise UserError(NEEDS_SIGNAL)
        eps = (x_t - now.alpha * denoise(x_t, t)) / now.sigma
        known = (eps, *state)
        if state or then.sigma == 0:
            used = sum(weight * e for weight, e in zip(WEIGHTS[len(known) - 1], known, strict=True))
        else:
            x_s = self._move(x_t, eps, now, then)
            used = (eps + (x_s - then.alpha * denoise(x_s, s)) / then.sigma) / 2
        return self._move(x_t, used, now, then), known[:3]

    def _move(self, x_t: Tensor, eps: Tensor | int | float, now: Level, then: Level) -> Tensor:
        x0 = (x_t - now.sigma * eps) / now.alpha
        clean = x0 if self.project is None else self.project(x0)
        return then.alpha * clean + then.sigma * eps
