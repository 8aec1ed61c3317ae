"""The meaning of each number about a latent for stage 2, in a sentence with its usual values."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """`says`: the meaning of the number for stage 2; `usual`: the values of healthy autoencoders."""

    says: str
    usual: str


READINGS = {
    "VIV": Reading(
        "The flow-matching loss that remains with an ideal network if the latents are Gaussian. The lower, the easier "
        "for stage 2. Compare only latents of the same size.",
        "0.4 to 1.1; white noise 1.57",
    ),
    "VIV-within-classes": Reading("The same for a model that is conditioned on the class.", "at most VIV"),
    "effective-rank": Reading(
        "The share of directions in which the latents vary. Below 0.01 the latent has collapsed to a few directions.",
        "0.02 to 0.3; white noise 1",
    ),
    "spectral-energy-0.25": Reading(
        "Share of the energy above a quarter of the frequency range. Stage 2 learns fine structure last, so the closer "
        "this is to the share in the images, the better.",
        "0.1 to 0.45; white noise 0.9",
    ),
    "spectral-energy-0.5": Reading(
        "The same above half of the frequency range; for stage 2 most of this is noise.", "0.04 to 0.2; white noise 0.5"
    ),
    "equivariance-error-scale": Reading(
        "At 0, halving an image halves its latent. Near 1 the two latents are unrelated, and stage 2 has to learn an "
        "object separately at every size.",
        "0.1 to 0.7; unrelated 1",
    ),
    "equivariance-error-flip": Reading("The same for a mirrored image.", "0.1 to 0.3; unrelated 1"),
    "equivariance-error-quarter-turn": Reading("The same for an image turned by 90°.", "0.1 to 0.4; unrelated 1"),
    "bits-per-dimension": Reading(
        "Information per latent number. Near 0 the latent carries none: lower loss.kl_weight.", "3 to 17"
    ),
}


def position(value: float, usual: str) -> str:
    """Where a value is: "below" or "above" the range at the beginning of `usual`, "" within it or without one."""
    found = re.match(r"([\d.]+) to ([\d.]+)", usual)
    if found is None:
        return ""
    low, high = map(float, found.groups())
    return "below" if value < low else "above" if value > high else ""


def readings(names: Iterable[str]) -> list[tuple[str, Reading]]:
    """(name, reading) of those metrics that are relevant for stage 2, in the table's order."""
    present = set(names)
    return [(name, reading) for name, reading in READINGS.items() if name in present]


def logged_readings(line: Mapping[str, object]) -> list[str]:
    """A sentence for each number about the latent in a line of a run's log: the value, the usual ones, the meaning."""
    values = {"VIV" if key == "viv" else key.replace("_", "-"): value for key, value in line.items()}
    return [
        f"{name} {value:.3g}, usual {reading.usual}. {reading.says}"
        for name, reading in readings(values)
        if isinstance(value := values[name], float)
    ]
