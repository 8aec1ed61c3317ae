"""Post-hoc averages: any width of the power-function profile, from the snapshots of a run (Karras et al. 2024, App. C).

A snapshot is the mean of the networks of all steps under a known profile. The weighted sum of snapshots whose profiles
approximate the target profile best is close to the average that tracking the target width would have given.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.model_folder import load
from sfumato.training.averages.ema import WIDEST, exponent_of_width
from sfumato.training.averages.snapshots import Snapshot, place_tensors, read_snapshot, snapshots_of

HALF_PRECISION = 1e-7
"""Relative regularisation of the diagonal: the variance of half precision's rounding, (2⁻¹¹)² / 3 and a little more. It
avoids sums of large positive and negative shares, which would amplify the rounding."""
MAX_MISS = 0.25


@dataclass(frozen=True)
class Profile:
    """p(tau) = (gamma + 1) tau^gamma / end^(gamma + 1) on (0, end], of this relative width; `end` counts updates."""

    end: float
    width: float


@dataclass(frozen=True)
class Combination:
    """The share of each profile, adding up to 1, and ||their sum - the target profile|| / ||the target profile||."""

    shares: tuple[float, ...]
    miss: float


def inner_product(a: Profile, b: Profile) -> float:
    """∫ p_a p_b (Karras et al. 2024, Algorithm 3)."""
    first, second = (a, b) if a.end <= b.end else (b, a)
    g, h = exponent_of_width(first.width), exponent_of_width(second.width)
    return float((g + 1) * (h + 1) / (g + h + 1) * (first.end / second.end) ** h / second.end)


def combine(profiles: Sequence[Profile], target: Profile) -> Combination:
    """The least-squares combination of profiles, under the constraint that the shares add up to 1.

    The constraint is not in the paper's Algorithm 3: it keeps parameters that training never changes exactly.
    """
    n = len(profiles)
    products = torch.tensor([[inner_product(a, b) for b in profiles] for a in profiles], dtype=torch.float64)
    with_target = torch.tensor([inner_product(a, target) for a in profiles], dtype=torch.float64)
    own = inner_product(target, target)
    system = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    system[:n, :n] = (products + HALF_PRECISION * torch.diag(products.diagonal())) / own
    system[:n, n] = system[n, :n] = 1
    right = torch.cat([with_target / own, torch.ones(1, dtype=torch.float64)])
    shares = torch.linalg.lstsq(system, right[:, None], driver="gelsd").solution[:n, 0]
    squared = shares @ products @ shares - 2 * shares @ with_target + own
    return Combination(tuple(shares.tolist()), float((squared / own).clamp(min=0).sqrt()))


@dataclass(frozen=True)
class Averaged:
    """A model with reconstructed weights, their step, and how far their profile is from the target."""

    model: LatentDiffusion
    step: int
    miss: float
    snapshots: int


def average(run: Path | str, width: float, step: int | None = None) -> Averaged:
    """The model of a run whose weights are the average of the given width up to a step, by default the last snapshot's.

    Raises UserError for a width or a step that cannot be computed from the run's snapshots.
    """
    if not 0.01 <= width <= WIDEST:
        raise UserError(f"width {width:g} is outside 0.01 to {WIDEST:g}: give a share of the training's length")
    found = snapshots_of(run)
    steps = sorted({snapshot.step for snapshot in found})
    end = steps[-1] if step is None else step
    if end not in steps:
        raise UserError(f"there is no snapshot of step {end}: choose one of {', '.join(map(str, steps))}")
    used = [snapshot for snapshot in found if snapshot.step <= end]
    read = [read_snapshot(snapshot)[1] for snapshot in used]
    updates = max(numbers["updates"] for numbers in read)
    combination = combine([Profile(n["updates"], n["width"]) for n in read], Profile(updates, width))
    if combination.miss > MAX_MISS:
        raise UserError(
            f"width {width:g} at step {end} is too far from those of the {len(used)} snapshots "
            f"(the best combination is off by {combination.miss:.0%}): choose one between the widths "
            f"{', '.join(f'{w:g}' for w in sorted({s.width for s in used}))}, or a later step"
        )
    model = load(run)
    place_tensors(model, weighed_sum(used, combination.shares), str(run))
    return Averaged(_described(model, width, end), end, combination.miss, len(used))


def weighed_sum(snapshots: Sequence[Snapshot], shares: Sequence[float]) -> dict[str, Tensor]:
    """The weighted sum of the snapshots' tensors; float32, accumulated in float64, one file at a time."""
    total: dict[str, Tensor] = {}
    for snapshot, share in zip(snapshots, shares, strict=True):
        for name, tensor in read_snapshot(snapshot)[0].items():
            part = tensor.double() * share
            total[name] = total[name].add_(part) if name in total else part
    return {name: tensor.float() for name, tensor in total.items()}


def _described(model: LatentDiffusion, width: float, step: int) -> LatentDiffusion:
    """The model with the average recorded in the training facts of `about`."""
    facts = {**model.config.about.get("diffusion", {}), "average": {"width": width, "step": step}}
    config = model.config.model_copy(update={"about": {**model.config.about, "diffusion": facts}})
    return replace(model, config=config)
