"""The sampler of students: one network call takes a step of any length.

A student's denoise function knows where the step ends (see `sfumato.sampling.guidance.Trajectory`), and returns the
clean latent at the end of the straight line through x_t and the x_s that it predicts. The line's point at s is x_s.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sfumato.diffusion.schedule import Schedule
from sfumato.sampling.sampler import Denoise, Noise, first_order, levels
from sfumato.schema import Schema


class FlowMapConfig(Schema):
    """The steps of a flow map; deterministic."""

    kind: Literal["flow-map"] = "flow-map"


@dataclass(frozen=True)
class FlowMap:
    """Follows the line from x_t to s."""

    def init(self) -> None:
        return None

    def step(
        self, denoise: Denoise, schedule: Schedule, x_t: Tensor, t: Tensor, s: Tensor, state: None, noise: Noise
    ) -> tuple[Tensor, None]:
        now, then = levels(schedule, t, s)
        return first_order(x_t, denoise(x_t, t), now, then), None
