"""The noise schedule in a checkpoint's buffers, matched within their stored precision.

Merging tools write every buffer in half precision, and some keep `alphas_cumprod` alone; float16 has 11 bits of a value
and bfloat16 has 8, also where the file has widened them again.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sfumato.diffusion.schedule import (
    CosineConfig,
    LinearConfig,
    ScaledLinearConfig,
    ScheduleConfig,
    SigmoidConfig,
    SqrtConfig,
    betas_of,
    zero_terminal,
)
from sfumato.errors import UserError

BUFFERS = ("betas", "alphas_cumprod", "sqrt_alphas_cumprod")
"""Buffers that determine a schedule, the most exact first."""
MAX_STEPS = 100_000
PUBLISHED = (
    ScaledLinearConfig(start=0.00085, end=0.012),
    ScaledLinearConfig(start=0.0015, end=0.0195),
    ScaledLinearConfig(start=0.0015, end=0.0205),
    ScaledLinearConfig(start=0.0015, end=0.0155),
    LinearConfig(start=0.0001, end=0.02),
    LinearConfig(start=0.00085, end=0.012),
    ScaledLinearConfig(start=0.0001, end=0.02),
    SqrtConfig(),
)
"""Ends of the published models' schedules: half precision does not determine them exactly."""
EXACT = 3e-6
"""Relative tolerance of betas in float32."""


def precision(values: Tensor) -> tuple[str, float]:
    """(name, relative spacing) of the narrowest type that represents these values exactly, whatever their stored
    type."""
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        if torch.equal(values.to(dtype).to(values.dtype), values):
            return name, torch.finfo(dtype).eps
    return "float32", EXACT


def infer_stored(
    shapes: Mapping[str, tuple[int, ...]], load: Callable[[str], Tensor], report: Callable[[str], None]
) -> dict[str, Any] | None:
    """The schedule (a configuration as plain data) of a checkpoint's buffers; None where it has none of them.

    Raises UserError where they have the wrong shape or follow no known schedule.
    """
    key = next((key for key in BUFFERS if key in shapes), None)
    if key is None:
        return None
    for key in (key for key in BUFFERS if key in shapes):
        values = _checked(key, shapes[key], load)
        if bool(values.isfinite().all()):
            break
        report(f"the buffer {key!r} contains values that are not finite and is ignored")
    else:
        raise UserError(
            f"the checkpoint's schedule (the key {key!r}) contains values that are not finite: give --config"
        )
    found = match(key, values)
    if key != "betas" or precision(values)[0] != "float32":
        ends = f", {found['start']:g} to {found['end']:g}" if "start" in found else ""
        end = ", zero terminal SNR" if found.get("zero_terminal_snr") else ""
        report(f"the schedule was read from {key!r} in {precision(values)[0]}: {found['kind']}{ends}{end}")
    return found


def configured_or_stored(
    configured: Any,
    shapes: Mapping[str, tuple[int, ...]],
    load: Callable[[str], Tensor],
    report: Callable[[str], None],
) -> dict[str, Any] | None:
    """The replacement of a configured schedule: the stored one where they differ, as in the original's loader, with a
    note.

    None where they agree within the precision of the file, or nothing is stored.
    """
    for key in (key for key in BUFFERS if key in shapes):
        values = _checked(key, shapes[key], load)
        if not bool(values.isfinite().all()):
            continue
        if fits(key, configured, values):
            return None
        rescaled = configured.model_copy(update={"zero_terminal_snr": True})
        if fits(key, rescaled, values):
            report("the checkpoint's schedule is its configuration's, rescaled to zero terminal SNR")
            return dict(rescaled.model_dump())
        break
    found = infer_stored(shapes, load, report)
    if found is not None:
        report(f"the checkpoint's schedule differs from its configuration's, using the checkpoint's: {found}")
    return found


def _checked(key: str, shape: tuple[int, ...], load: Callable[[str], Tensor]) -> Tensor:
    if len(shape) != 1 or not 2 <= shape[0] <= MAX_STEPS:
        raise UserError(f"the key {key!r} has shape {shape}, it should be (steps,)")
    return load(key).double()


def match(key: str, values: Tensor) -> dict[str, Any]:
    """The configuration whose buffer `key` has these values (T,) float64; raises UserError if there is none.

    Of all that match, the nearest is chosen, and of several equally near ones the first.
    """
    name, spacing = precision(values)
    best, nearest = None, float("inf")
    for config in _candidates(key, values, spacing):
        distance = _distance(key, config, values, name, spacing)
        if distance < min(nearest, 1.0):
            best, nearest = config, distance
    if best is None:
        raise UserError(
            f"the checkpoint's {len(values)} {key} from {values[0]:.6g} to {values[-1]:.6g}, stored in {name}, "
            "follow no known schedule (linear, sqrt_linear, sqrt, cosine, sigmoid)"
        )
    plain = best.model_dump()
    if not plain["zero_terminal_snr"]:
        del plain["zero_terminal_snr"]
    return plain


def fits(key: str, config: ScheduleConfig, values: Tensor) -> bool:
    """Whether a schedule's buffer has these values, within their precision."""
    return _distance(key, config, values, *precision(values)) < 1


def buffer_of(key: str, config: Any) -> Tensor:
    """betas, alphas_cumprod or sqrt_alphas_cumprod (T,) of a discrete schedule, float64."""
    betas = betas_of(config)
    betas = zero_terminal(betas) if config.zero_terminal_snr else betas
    if key == "betas":
        return betas
    products = torch.cumprod(1 - betas, 0)
    return products if key == "alphas_cumprod" else products.sqrt()


def _distance(key: str, config: Any, values: Tensor, name: str, spacing: float) -> float:
    """Largest deviation relative to the rounding error; below 1 they agree."""
    if config.steps != len(values):
        return float("inf")
    table = buffer_of(key, config)
    if name == "float32":
        # 1 - beta rounds to float32 in every factor of the products; the last value of a zero-terminal one is 0
        allowed = spacing * table.abs() + (2e-6 if key != "betas" else 1e-7 if config.zero_terminal_snr else 0.0)
    else:
        smallest = torch.finfo(torch.float16).tiny * spacing if name == "float16" else 0.0
        allowed = 0.51 * spacing * torch.maximum(table.abs(), values.abs()) + smallest + 1e-6 * (key != "betas")
    deviation = (table - values).abs() / allowed.clamp(min=1e-300)
    return float(deviation.max()) if bool(deviation.isfinite().all()) else float("inf")


def _candidates(key: str, values: Tensor, spacing: float) -> Iterator[Any]:
    steps = len(values)
    for config in PUBLISHED:
        yield config.model_copy(update={"steps": steps})
    for config in PUBLISHED:
        yield config.model_copy(update={"steps": steps, "zero_terminal_snr": True})
    yield CosineConfig(steps=steps)
    yield SigmoidConfig(steps=steps)
    products = values if key == "alphas_cumprod" else values.square()
    first, last = (values[0], values[-1]) if key == "betas" else (1 - products[0], 1 - products[-1] / products[-2])
    error = 1e-7 if key == "betas" and spacing == EXACT else spacing / 2 if key == "betas" else 1e-4
    ends = [
        (_shortest(first.item() ** power, power * error), _shortest(last.item() ** power, power * error))
        for power in (1, 2)
    ]
    for kind, (start, end) in ((ScaledLinearConfig, ends[0]), (LinearConfig, ends[0]), (SqrtConfig, ends[1])):
        if 0 < start < 1 and 0 < end < 1:
            yield kind(steps=steps, start=start, end=end)


def _shortest(value: float, error: float) -> float:
    """The shortest decimal within a relative error of a value, which was presumably in the configuration."""
    for digits in range(1, 10):
        rounded = float(f"{value:.{digits}g}")
        if abs(rounded - value) <= error * abs(value):
            return rounded
    return value
