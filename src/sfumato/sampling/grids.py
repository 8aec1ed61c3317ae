"""The times of a sampler from t = 1 to 0: named grids of S steps, as S + 1 falling times.

The first S times are where the network is called; the last is the end: t = 0, or index 0 of the table (t = 1 / T),
where the original's DDIM and PLMS end.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sfumato.diffusion.schedule import Schedule
from sfumato.errors import UserError
from sfumato.schema import Schema

GridKind = Literal["leading", "trailing", "linspace", "quadratic", "karras", "log-snr", "ays", "times"]

MOST_STEPS = 10_000
"""More than this is a typing error: no sampler benefits from it."""

AYS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
"""sigma / alpha of the ten steps that Sabour et al. 2024 ("Align Your Steps") found for Stable Diffusion 1.5."""


BY_NOISE_LEVEL = ("karras", "log-snr")


class GridConfig(Schema):
    """How the steps are spaced; see docs/samplers.md for when to use which."""

    kind: GridKind = "trailing"
    end: Literal["clean", "first-index"] | None = None
    """Where the last step ends: t = 0, or index 0. None: as in the original for leading and quadratic, else clean."""
    shift: float = Field(1.0, gt=0, le=100)
    """t -> shift · t / (1 + (shift - 1) t): above 1 spends more steps on noisy times (Esser et al. 2024, eq. 23)."""
    rho: float = Field(7.0, gt=0, le=1000)
    """The exponent of the karras grid."""
    times: tuple[float, ...] | None = None
    """The falling times themselves, end included, for kind "times"; see `resampled` for another number of steps."""


def build_grid(config: GridConfig, schedule: Schedule, steps: int) -> Tensor:
    """(steps + 1,) float64 times, strictly falling; raises UserError for an impossible number of steps."""
    if steps < 1:
        raise UserError(f"steps is {steps}: sampling requires at least 1")
    if steps > MOST_STEPS:
        raise UserError(f"steps is {steps}: give at most {MOST_STEPS}, 20 to 50 are usual")
    if config.kind == "times":
        return _explicit(config.times, steps)
    if config.kind == "ays":
        times = _stretched_ays(schedule, steps)
    elif config.kind in BY_NOISE_LEVEL:
        times = _by_noise_level(schedule, steps, config.rho if config.kind == "karras" else None)
    else:
        if steps > schedule.steps:
            raise UserError(f"steps is {steps}, but the {config.kind} grid has at most the model's {schedule.steps}")
        times = _by_index(config.kind, schedule.steps, steps) / schedule.steps
        if not schedule.discrete and config.kind == "trailing":
            times = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
    if config.shift != 1:
        times = config.shift * times / (1 + (config.shift - 1) * times)
        if schedule.discrete and config.kind not in (*BY_NOISE_LEVEL, "ays"):
            times = _distinct((times * schedule.steps).round(), schedule.steps) / schedule.steps
    first_index = 1 / schedule.steps
    original = config.kind in ("leading", "quadratic") and config.end is None
    if (original or config.end == "first-index") and float(times[-1]) > first_index * (1 + 1e-9):
        end = first_index
    elif config.end == "first-index":
        raise UserError(
            f"a {config.kind} grid of {steps} steps already visits index 0: choose end 'clean' or fewer steps"
        )
    else:
        end = 0.0
    return torch.cat([times, torch.tensor([end], dtype=torch.float64)])


def _explicit(times: Sequence[float] | None, steps: int) -> Tensor:
    if times is None or len(times) != steps + 1:
        raise UserError(f"grid.times has {len(times or ())} entries: {steps} steps need {steps + 1}, the end included")
    grid = torch.tensor(times, dtype=torch.float64)
    if not bool((grid[1:] < grid[:-1]).all()) or grid[0] > 1 or grid[-1] < 0:
        raise UserError("grid.times must fall strictly from at most 1 to at least 0")
    return grid


def _by_index(kind: GridKind, T: int, steps: int) -> Tensor:
    """Table positions i + 1 of the visited indices i, falling; float64."""
    i = torch.arange(steps, dtype=torch.float64)
    match kind:
        case "leading":
            # the original's range(0, T, T // S) + 1 where that has S entries, else evenly spaced
            stride = T // steps
            position = i * stride if len(range(0, T, stride)) == steps else (i * T / steps).floor()
            position = position + (2 if position[-1] + 2 <= T else 1)
        case "quadratic":
            position = _distinct((i * math.sqrt(0.8 * T) / max(steps - 1, 1)).square().floor().flip(0) + 2, T).flip(0)
        case "linspace":
            position = (
                (i * ((T - 1) / max(steps - 1, 1))).round() + 1 if steps > 1 else torch.full((1,), float(T)).double()
            )
        case _:
            return (torch.arange(steps, 0, -1, dtype=torch.float64) * T / steps).round()
    return position.flip(0)


def _distinct(falling: Tensor, T: int) -> Tensor:
    """Whole positions 1 … T made strictly falling by raising those that rounding made equal to their successor."""
    positions: list[int] = []
    for value in falling.flip(0).long().tolist():
        positions.append(max(value, positions[-1] + 1 if positions else 1))
    for i in range(len(positions) - 1, -1, -1):
        positions[i] = min(positions[i], T if i == len(positions) - 1 else positions[i + 1] - 1)
    return torch.tensor(positions[::-1], dtype=torch.float64)


def resampled(times: Sequence[float], schedule: Schedule, steps: int) -> tuple[float, ...]:
    """Resamples a list of falling times, end included, to `steps` steps: lambda is interpolated between the entries.

    This is how Sabour et al. 2024 resample their lists. An end at t = 0 and a start where alpha is 0, whose lambda is
    infinite, stay unchanged. Raises UserError for a list that does not fall within [0, 1].
    """
    listed = _explicit(times, len(times) - 1)
    if steps == len(times) - 1:
        return tuple(listed.tolist())
    if steps < 1:
        raise UserError(f"steps is {steps}: sampling requires at least 1")
    start, end = listed[:1], listed[-1:]
    fixed_start, fixed_end = bool(schedule.log_snr(start).isinf()), float(end) == 0
    inner = listed[int(fixed_start) : len(listed) - int(fixed_end)]
    count = steps + 1 - int(fixed_start) - int(fixed_end)
    if count < 1 or len(inner) == 0:
        return tuple(torch.cat([start, end]).tolist())
    moved = schedule.time_of_log_snr(_interpolated(schedule.log_snr(inner), count))
    parts = [start] * fixed_start + [moved] + [end] * fixed_end
    return tuple(torch.cat(parts).tolist())


def _interpolated(values: Tensor, count: int) -> Tensor:
    """`count` evenly spaced values (float64) of a list, interpolated, ends included; a single one is the first."""
    places = torch.linspace(0, len(values) - 1, count, dtype=torch.float64) if count > 1 else torch.zeros(1).double()
    below = places.floor().long().clamp(max=max(len(values) - 2, 0))
    above = (below + 1).clamp(max=len(values) - 1)
    return torch.lerp(values[below], values[above], places - below)


def _stretched_ays(schedule: Schedule, steps: int) -> Tensor:
    """The list of AYS in lambda, stretched so that it begins and ends where this schedule does; without the end.

    Where alpha(1) = 0 the noisiest step is visited first, as in the other grids.
    """
    listed = -torch.tensor(AYS, dtype=torch.float64).log()
    shape = (listed - listed[0]) / (listed[-1] - listed[0])
    first = 1.0 - schedule.zero_terminal / schedule.steps
    noisy, clean = float(schedule.log_snr(first)), float(schedule.log_snr(1 / schedule.steps))
    count = steps - int(schedule.zero_terminal)
    times = schedule.time_of_log_snr(noisy + (clean - noisy) * _interpolated(shape, count + 1)[:count])
    start = torch.ones(1, dtype=torch.float64)
    return torch.cat([start, times]) if schedule.zero_terminal else torch.cat([start, times[1:]])


def _by_noise_level(schedule: Schedule, steps: int, rho: float | None) -> Tensor:
    """Uniform in lambda, or (with rho) in (sigma / alpha)^(1/rho) (Karras et al. 2022, eq. 5), from t = 1 to index 0.

    Where alpha(1) = 0, t = 1 has no finite lambda: it is visited first, and the ramp begins one index later.
    """
    last = 1 / schedule.steps
    start = 1.0 if not schedule.zero_terminal else 1.0 - last
    ramp = steps if not schedule.zero_terminal else steps - 1
    noisy, clean = float(schedule.log_snr(start)), float(schedule.log_snr(last))
    if rho is None:
        log_snrs = torch.linspace(noisy, clean, ramp, dtype=torch.float64)
    else:
        roots = torch.linspace(math.exp(-noisy / rho), math.exp(-clean / rho), ramp, dtype=torch.float64)
        log_snrs = -rho * roots.log()
    times = schedule.time_of_log_snr(log_snrs)
    if not schedule.zero_terminal:
        times[0] = 1.0
        return times
    return torch.cat([torch.ones(1, dtype=torch.float64), times])


def tail(grid: Tensor, strength: float) -> Tensor:
    """The last part of a grid, to start from a noised image: about the share `strength` of its steps, at least one.

    Noise the latent to the first time of the result. Raises UserError for strength outside (0, 1].
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength is {strength:g}: choose it above 0 (keep the image) and up to 1 (ignore it)")
    steps = len(grid) - 1
    return grid[steps - max(1, round(strength * steps)) :]
