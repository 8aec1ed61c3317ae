"""Whether the latents of a training collapse: their spread, their effective rank and what can be reconstructed."""

from collections.abc import Mapping, MutableMapping
from typing import Any

FAILING = 0.1
"""A spread below this share of the run's greatest is a collapse, or of the noise's where latents are not normalised."""
FEW_DIRECTIONS = 0.3
"""So is an effective rank below this share of the run's greatest."""
DECIBELS = 3.0
"""And a PSNR this far below the run's best."""

GREATEST = {"spread": "greatest_spread", "effective_rank": "greatest_rank", "psnr": "best_psnr"}
"""The notes of a state that hold the greatest values so far."""
WARNED = "collapsed"
"""The note that lists what was warned of: each once a run."""


def mean_spread(values: Mapping[str, Any]) -> float | None:
    """The mean over the channels of the latents' standard deviation in a record of the log, if it has them."""
    spreads = values.get("latent_std")
    return sum(spreads) / len(spreads) if isinstance(spreads, list) and spreads else None


def collapse_warnings(
    values: Mapping[str, float | list[float]], notes: MutableMapping[str, Any], normalised: bool
) -> list[str]:
    """Sentences for the user about numbers of held-out images, each kind once a run; `notes` are those of its state.

    Args:
        values: the numbers of a preview: latent_std, effective_rank, psnr; what is missing is not judged.
        normalised: whether stage 2 sees normalised latents, whose scale is then irrelevant.
    """
    now = {"spread": mean_spread(values), "effective_rank": values.get("effective_rank"), "psnr": values.get("psnr")}
    found: dict[str, str] = {}
    for name, value in now.items():
        if not isinstance(value, float):
            continue
        most = max(value, float(notes.get(GREATEST[name], value)))
        notes[GREATEST[name]] = most
        sentence = _judged(name, value, most, normalised)
        if sentence is not None:
            found[name] = sentence
    warned = list(notes.get(WARNED, []))
    new = [name for name in found if name not in warned]
    if new:
        notes[WARNED] = [*warned, *new]
    return [f"the latents are collapsing: {found[name]}; compare another coupling.kind" for name in new]


def _judged(name: str, value: float, most: float, normalised: bool) -> str | None:
    """How a number shows a collapse, with `most` its maximum in the run; None if it does not."""
    if name == "psnr":
        return f"PSNR fell from {most:.1f} to {value:.1f} dB" if value < most - DECIBELS else None
    if name == "effective_rank":
        return f"their effective rank fell from {most:.3f} to {value:.3f}" if value < FEW_DIRECTIONS * most else None
    if not normalised and value < FAILING:
        return f"their standard deviation is {value:.3g}, and stage 2 sees them beside noise of 1"
    return f"their standard deviation fell from {most:.3g} to {value:.3g}" if value < FAILING * most else None
