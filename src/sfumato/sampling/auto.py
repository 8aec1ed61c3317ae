"""The sampler `auto`: the choice of sampler and grid for a model and a number of steps, with its reason."""

from dataclasses import dataclass

from sfumato.diffusion.prediction import PredictionKind
from sfumato.diffusion.schedule import Schedule
from sfumato.sampling.ancestral import DDIMConfig
from sfumato.sampling.dpm_solver import DPM2MConfig
from sfumato.sampling.grids import GridConfig
from sfumato.sampling.table import SamplerConfig
from sfumato.sampling.unipc import UniPCConfig

FEW_STEPS = 20
"""From this many steps UniPC and DPM-Solver++(2M) are equally close to the exact solution; below, UniPC is closer."""

VERY_FEW_STEPS = 8
"""Below, guided samples of a trained flow model were best with DDIM; from this many on DPM-Solver++(2M) is as good."""

LONGEST_STEP = 1.0
"""Steps evenly spaced in lambda that are longer than this are worse than steps evenly spaced in time."""


@dataclass(frozen=True)
class Choice:
    """A sampler and its grid, and a sentence with the reason for the choice."""

    sampler: SamplerConfig
    grid: GridConfig
    reason: str


def choose(schedule: Schedule, prediction: PredictionKind, steps: int, guidance: float = 1.0) -> Choice:
    """The best sampler by schedule, steps and guidance, as measured on closed-form denoisers and a trained flow model.

    docs/samplers.md has the measurements; `guidance` is the largest scale in use.
    """
    sampler, reason = _solver(schedule, steps, guidance)
    why = [reason]
    length = _lambda_range(schedule) / steps
    if not schedule.discrete:
        kind, place = "trailing", "a flow model is nearly straight in time, so its steps are evenly spaced there"
    elif length > LONGEST_STEP:
        kind = "trailing"
        place = f"even steps of log-SNR would be {length:.1f} long, over {LONGEST_STEP:g}, so they are even in time"
    else:
        kind, place = "log-snr", f"even steps of log-SNR are short enough ({length:.2f})"
    why.append(place)
    if schedule.zero_terminal:
        why.append(f"it begins in pure noise, where {prediction} prediction is well defined")
    if guidance > 1:
        why.append(f"guidance {guidance:g} forbids the third order, which overshoots")
    return Choice(sampler, GridConfig(kind=kind), "; ".join(why))


def _solver(schedule: Schedule, steps: int, guidance: float) -> tuple[SamplerConfig, str]:
    """The sampler, and why."""
    if not schedule.discrete and guidance > 1 and steps < VERY_FEW_STEPS:
        return DDIMConfig(), f"{steps} guided steps along a flow are best straight ones: higher orders overshoot"
    if steps < FEW_STEPS and (schedule.discrete or guidance <= 1):
        return UniPCConfig(order=2), f"{steps} steps are few, where UniPC's corrector halves the error"
    return DPM2MConfig(), f"{steps} steps are enough for a second-order multistep solver, one network call each"


def _lambda_range(schedule: Schedule) -> float:
    """The range of lambda from the noisiest step where it is finite to index 0."""
    noisy = 1.0 - schedule.zero_terminal / schedule.steps
    return float(schedule.log_snr(1 / schedule.steps) - schedule.log_snr(noisy))
