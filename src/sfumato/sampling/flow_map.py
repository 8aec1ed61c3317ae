"""The sampler of students: one network call takes a step of any length.

A student's denoise function knows where the step ends (see `sfumato.sampling.guidance.Trajectory`), and returns the
clean latent at the end of the straight line through x_t and the x_s that it predicts. The line's point at s is x_s, so
that the step itself is Euler's.
"""

from typing import Literal

from sfumato.schema import Schema


class FlowMapConfig(Schema):
    """The steps of a flow map; deterministic."""

    kind: Literal["flow-map"] = "flow-map"
