"""Every sampler by name: its configuration, how to build it, its default grid, and its description for users."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from sfumato.diffusion.prediction import PredictionKind
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import UserError
from sfumato.sampling.ancestral import DDIM, DDPM, DDIMConfig, DDPMConfig
from sfumato.sampling.dpm_solver import (
    DPM2M,
    DPM2MSDE,
    DPM2S,
    DPM3M,
    DPM2MConfig,
    DPM2MSDEConfig,
    DPM2SConfig,
    DPM3MConfig,
)
from sfumato.sampling.flow_map import FlowMapConfig
from sfumato.sampling.grids import GridConfig, GridKind
from sfumato.sampling.heun import EDM, EDMConfig, Euler, EulerConfig, Heun, HeunConfig
from sfumato.sampling.plms import NEEDS_SIGNAL, PLMS, PLMSConfig
from sfumato.sampling.sampler import Sampler
from sfumato.sampling.unipc import UniPC, UniPCConfig
from sfumato.schema import Schema

SamplerConfig = Annotated[
    DDPMConfig
    | DDIMConfig
    | PLMSConfig
    | EulerConfig
    | HeunConfig
    | EDMConfig
    | DPM2MConfig
    | DPM2SConfig
    | DPM3MConfig
    | DPM2MSDEConfig
    | UniPCConfig
    | FlowMapConfig,
    Field(discriminator="kind"),
]


@dataclass(frozen=True)
class SamplerFacts:
    """A row of the table: `order` of convergence (None: stochastic), network calls a step, default grid, use."""

    config: type[Schema]
    order: int | None
    calls: int
    grid: GridKind
    suits: str


SAMPLERS: dict[str, SamplerFacts] = {
    "ddpm": SamplerFacts(DDPMConfig, None, 1, "trailing", "the paper's reference; hundreds of steps, most variety"),
    "ddim": SamplerFacts(DDIMConfig, 1, 1, "leading", "the paper's sampler; 50 to 250 steps; inversion and editing"),
    "plms": SamplerFacts(PLMSConfig, 2, 1, "leading", "the paper's fast sampler; 50 steps; one extra call in total"),
    "euler": SamplerFacts(EulerConfig, 1, 1, "karras", "ddim with eta 0 on another grid; flow models"),
    "heun": SamplerFacts(HeunConfig, 2, 2, "karras", "a careful reference; 20 to 50 steps"),
    "edm": SamplerFacts(EDMConfig, None, 2, "karras", "many steps; churn corrects the errors of earlier steps"),
    "dpmpp-2m": SamplerFacts(DPM2MConfig, 2, 1, "log-snr", "the everyday choice; 10 to 25 steps"),
    "dpmpp-2s": SamplerFacts(DPM2SConfig, 2, 2, "log-snr", "strong guidance that makes 2m overshoot; 10 to 15 steps"),
    "dpmpp-3m": SamplerFacts(DPM3MConfig, 3, 1, "log-snr", "weak or no guidance, 20 steps or more"),
    "dpmpp-2m-sde": SamplerFacts(DPM2MSDEConfig, None, 1, "log-snr", "variety of ddpm in 20 to 50 steps"),
    "unipc": SamplerFacts(UniPCConfig, 3, 1, "log-snr", "very few steps, 5 to 15"),
}
"""Those of ordinary models."""

STUDENT_SAMPLER = "flow-map"
EVERY_SAMPLER: dict[str, SamplerFacts] = {
    **SAMPLERS,
    STUDENT_SAMPLER: SamplerFacts(FlowMapConfig, 1, 1, "trailing", "students (`sfumato distill`) alone; 1 to 8 steps"),
}


def build_sampler(config: SamplerConfig) -> Sampler[Any]:
    """The sampler of a configuration. Raises UserError for values outside their range."""
    match config:
        case DDPMConfig():
            return DDPM(config.variance, config.temperature)
        case DDIMConfig():
            return DDIM(config.eta, config.temperature)
        case PLMSConfig():
            return PLMS()
        case EulerConfig() | FlowMapConfig():
            return Euler()
        case HeunConfig():
            return Heun()
        case EDMConfig():
            return EDM(config.churn, config.churn_min, config.churn_max, config.noise_scale)
        case DPM2MConfig():
            return DPM2M()
        case DPM2SConfig():
            return DPM2S()
        case DPM3MConfig():
            return DPM3M()
        case DPM2MSDEConfig():
            return DPM2MSDE(config.eta)
        case UniPCConfig():
            return UniPC(config.order, config.scale)


def default_grid(config: SamplerConfig, schedule: Schedule) -> GridConfig:
    """The default grid of a sampler on this schedule.

    Flow models use evenly spaced times, and a zero-terminal schedule a grid that begins in pure noise; PLMS, which
    cannot begin there, keeps the original's grid.
    """
    kind = EVERY_SAMPLER[config.kind].grid
    misses_the_noise = schedule.zero_terminal and kind == "leading"
    if config.kind != "plms" and (not schedule.discrete or misses_the_noise):
        kind = "trailing"
    return GridConfig(kind=kind)


def check_start(kind: str, prediction: PredictionKind, schedule: Schedule, grid: Tensor) -> None:
    """Raises UserError where a sampler or a prediction kind cannot begin at grid[0], where alpha is 0."""
    if float(schedule(grid[0])[0]) > 0:
        return
    if prediction == "eps":
        raise UserError(
            "this model predicts the noise (eps), which does not determine x0 at t = 1 of its schedule, "
            "where alpha is 0: choose grid 'leading', which begins below, or train with prediction 'v'"
        )
    if kind == "plms":
        raise UserError(NEEDS_SIGNAL)
