"""How a task samples: what all tasks share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sfumato.engine.tiles import DEFAULT_MEMORY
from sfumato.model import DEFAULT_STEPS
from sfumato.sampling.grids import GridConfig
from sfumato.sampling.loop import Step
from sfumato.sampling.table import SamplerConfig
from sfumato.sampling.windows import OVERLAP

DEFAULT_SAMPLER = "dpmpp-2m"


@dataclass(frozen=True)
class Settings:
    """The options of `LatentDiffusion.sample_tensor` that tasks share; the same names mean the same there.

    n: how many pictures of each map, layout or picture that is given; their seeds are seed, seed + 1, ...
    batch: how many are drawn at once, where their canvases have one size. A seed's picture does not depend on it.
    guidance: one scale, or one for each of some parts of a composite conditioner by their names; parts that are not
    named are followed without guidance.
    window: None: large canvases are denoised in overlapping windows of the training size; 0: as a whole; else the
    windows' side in pixels.
    """

    n: int = 1
    batch: int = 1
    seed: int = 0
    steps: int = DEFAULT_STEPS
    sampler: str | SamplerConfig = DEFAULT_SAMPLER
    grid: GridConfig | None = None
    guidance: float | Mapping[str, float] | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    window: int | None = None
    overlap: float = OVERLAP
    memory: int = DEFAULT_MEMORY
    callback: Callable[[Step], None] | None = None
