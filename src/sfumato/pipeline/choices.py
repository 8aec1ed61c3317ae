"""The sampler and grid of a request, as configurations."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast, get_args

from torch import Tensor

from sfumato.config import apply_overrides, nearest, parse
from sfumato.diffusion.schedule import Schedule
from sfumato.errors import UserError
from sfumato.pipeline.options import Range, check_number
from sfumato.pipeline.parts import SecondStage
from sfumato.pipeline.request import AUTO, SampleRequest
from sfumato.pipeline.students import default_steps, refuse_for_others, student_choice
from sfumato.sampling.auto import Choice, choose
from sfumato.sampling.grids import GridConfig, GridKind, build_grid, resampled
from sfumato.sampling.table import EVERY_SAMPLER, SamplerConfig, check_start, default_grid


@dataclass(frozen=True)
class Steps:
    """Sampler, grid and the reason for the choice, and the (S + 1,) falling times."""

    choice: Choice
    times: Tensor


def check_names(request: SampleRequest) -> None:
    """Raises UserError for unknown names and settings of sampler and grid, before a model is opened."""
    named_sampler(request.sampler, request.eta)
    named_grid(request.grid, request.shift)
    if request.times is not None and (request.grid is not None or request.shift is not None):
        raise UserError("times already sets the steps: leave out grid and shift")


def chosen_steps(second: SecondStage, request: SampleRequest, guidance: float = 1.0) -> Steps:
    """The sampler and the times of a request; `guidance` is the largest scale in use. Raises UserError."""
    check_names(request)
    grid, steps = named_grid(request.grid, request.shift), request.steps or default_steps(second.config)
    if request.times is not None:
        grid = times_grid(request.times, second.schedule, request.steps)
        steps = len(grid.times or ()) - 1
    elif isinstance(grid, GridConfig) and grid.kind == "times" and request.steps is None:
        steps = len(grid.times or ()) - 1
    choice = chosen(second, named_sampler(request.sampler, request.eta), grid, steps, guidance)
    if grid is None and request.shift is not None:
        shifted = parse({**choice.grid.model_dump(), "shift": request.shift}, GridConfig, "shift")
        choice = Choice(choice.sampler, shifted, choice.reason)
    times = build_grid(choice.grid, second.schedule, steps)
    check_start(choice.sampler.kind, second.config.prediction, second.schedule, times)
    return Steps(choice, times)


def chosen(
    second: SecondStage, sampler: str | SamplerConfig, grid: GridConfig | None, steps: int, guidance: float = 1.0
) -> Choice:
    """The sampler by name, configuration or "auto", and its grid. Raises UserError for an unknown name."""
    named = named_sampler(sampler, None)
    if second.config.student is not None:
        return student_choice(second.config.student, named, grid)
    if isinstance(named, str):
        picked = choose(second.schedule, second.config.prediction, steps, guidance)
        return picked if grid is None else Choice(picked.sampler, grid, picked.reason)
    refuse_for_others(named)
    return Choice(named, grid or default_grid(named, second.schedule), "")


def named_sampler(sampler: str | SamplerConfig, eta: float | None = None) -> str | SamplerConfig:
    """The configuration of "name:key=value,...", or "auto". Raises UserError for unknown names and settings."""
    if not isinstance(sampler, str):
        return sampler if eta is None else _with_eta(sampler.kind, sampler.model_dump(exclude={"kind"}), eta)
    name, settings = settings_of("sampler", sampler)
    if name == AUTO:
        if settings or eta is not None:
            setting = "eta" if eta is not None else next(iter(settings))
            raise UserError(f"{setting} does not apply to the sampler auto, which chooses its settings: name a sampler")
        return AUTO
    known = [AUTO, *EVERY_SAMPLER]
    if name not in EVERY_SAMPLER:
        raise UserError(f"sampler {name!r} is not one of {', '.join(known)}{nearest(name, known)}")
    return sampler_named(name, **settings) if eta is None else _with_eta(name, settings, eta)


def _with_eta(name: str, settings: dict[str, Any], eta: float) -> SamplerConfig:
    accepting = [other for other, facts in EVERY_SAMPLER.items() if "eta" in facts.config.model_fields]
    if name not in accepting:
        raise UserError(f"eta does not apply to the sampler {name}, only to {' and '.join(accepting)}")
    return sampler_named(name, **{"eta": eta, **settings})


def sampler_named(name: str, **settings: Any) -> SamplerConfig:
    """The configuration of a sampler by name. Raises UserError for an unknown name or setting."""
    if name not in EVERY_SAMPLER:
        raise UserError(f"sampler {name!r} is not one of {', '.join(EVERY_SAMPLER)}{nearest(name, EVERY_SAMPLER)}")
    return cast(SamplerConfig, parse({"kind": name, **settings}, EVERY_SAMPLER[name].config, f"sampler {name}"))


def named_grid(grid: str | GridConfig | None, shift: float | None = None) -> GridConfig | None:
    """The configuration of "kind:key=value,...". Raises UserError for unknown kinds and settings."""
    extra = {} if shift is None else {"shift": shift}
    if grid is None:
        return None
    if isinstance(grid, GridConfig):
        return grid if shift is None else parse({**grid.model_dump(), **extra}, GridConfig, "shift")
    kind, settings = settings_of("grid", grid)
    kinds = [kind for kind in get_args(GridKind) if kind != "times"]
    if kind not in kinds:
        raise UserError(f"grid {kind!r} is not one of {', '.join(kinds)}{nearest(kind, kinds)}")
    return parse({"kind": kind, **settings, **extra}, GridConfig, f"grid {kind}")


def settings_of(option: str, text: str) -> tuple[str, dict[str, Any]]:
    """The name and the settings of "name:key=value,key=value"; values are parsed as YAML. Raises UserError."""
    name, colon, rest = text.partition(":")
    if colon and not all(part.strip() for part in rest.split(",")):
        raise UserError(f"{option} {text!r} lacks a setting after a colon or comma: give NAME or NAME:KEY=VALUE")
    return name, apply_overrides({}, [part for part in rest.split(",") if part])


def times_grid(times: Sequence[float], schedule: Schedule, steps: int | None) -> GridConfig:
    """The grid of a list: times including the end, or the table's indices (numbers above 1), which end at t = 0.

    A different number of steps is interpolated between the entries. Raises UserError for a list that does not fall,
    or is outside the schedule.
    """
    values = [float(value) for value in times]
    if values and max(values) > 1:
        for value in values:
            check_number("times: index", value, Range(0, schedule.steps - 1))
        values = [(value + 1) / schedule.steps for value in values] + [0.0]
    falls = all(a > b for a, b in pairwise(values))
    if len(values) < 2 or not falls or values[0] > 1 or values[-1] < 0:
        listed = ", ".join(f"{value:g}" for value in times[:6])
        raise UserError(f"times {listed} must be at least two times that fall within [0, 1], or falling indices")
    return GridConfig(kind="times", times=resampled(values, schedule, steps or len(values) - 1))
