"""Conclusions from the numbers: the order of the latent spaces, what predicts it, and the time to equal quality."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from statistics import mean

from sfumato.studies.latents.result import Better, FirstResult, ScorePoint, SecondResult
from sfumato.studies.latents.spaces import PLAIN

MOST_RANKED = 8
"""Latent spaces up to which all orders are counted for the probability of a rank correlation by chance."""
LEAST_RANKED = 3
LOGGED = 1e-5
"""Relative rounding of the scores in a log, within which a score counts as reached."""


@dataclass(frozen=True)
class Standing:
    """The scores of a latent space over its seeds.

    Attributes:
        space: its name.
        score: mean over the seeds.
        spread: standard deviation over the seeds (n - 1); None with one seed.
        seeds: how many.
        time: the share of the training after which its mean score reaches the plain space's last one; None: never.
    """

    space: str
    score: float
    spread: float | None
    seeds: int
    time: float | None


@dataclass(frozen=True)
class Prediction:
    """How well a number that is known before stage 2 predicts the order of the scores.

    Attributes:
        name: of the number.
        better: which values are thought to be better.
        correlation: Spearman's, in [-1, 1]; 1: the order is the predicted one.
        chance: the share of all orders with at least this correlation; None with too many latent spaces to count.
    """

    name: str
    better: Better
    correlation: float
    chance: float | None


def standings(results: Sequence[SecondResult], better: Better) -> list[Standing]:
    """The latent spaces that have results, the best first. `better`: of the score."""
    found = []
    spaces = list(dict.fromkeys(result.space for result in results))
    target = _mean_score(results, PLAIN) if PLAIN in spaces else None
    for space in spaces:
        own = [result for result in results if result.space == space]
        scores = [result.score for result in own]
        average = mean(scores)
        spread = None
        if len(scores) > 1:
            spread = math.sqrt(sum((score - average) ** 2 for score in scores) / (len(scores) - 1))
        time = None if target is None else time_to(mean_curve([one.curve for one in own]), target, better)
        found.append(Standing(space, average, spread, len(own), time))
    return sorted(found, key=lambda one: one.score, reverse=better == "higher")


def _mean_score(results: Sequence[SecondResult], space: str) -> float:
    return mean(result.score for result in results if result.space == space)


def mean_curve(curves: Sequence[Sequence[ScorePoint]]) -> list[ScorePoint]:
    """The mean of scores and seconds at each step that all curves have."""
    steps = [{point.step: point for point in curve} for curve in curves]
    shared = sorted(set.intersection(*(set(one) for one in steps))) if steps else []
    return [
        ScorePoint(step, mean(one[step].seconds for one in steps), mean(one[step].score for one in steps))
        for step in shared
    ]


def time_to(curve: Sequence[ScorePoint], target: float, better: Better) -> float | None:
    """The share of a training, in (0, 1], after which its score reaches `target`, between the points linearly.

    None if it does not; the first point's share if that is as good already, since nothing is known before it.
    """
    sign = 1 if better == "higher" else -1
    target -= sign * LOGGED * abs(target)
    for place, point in enumerate(curve):
        if sign * (point.score - target) < 0:
            continue
        step: float = point.step
        if place:
            before = curve[place - 1]
            rise = (target - before.score) / (point.score - before.score)
            step = before.step + rise * (point.step - before.step)
        return step / curve[-1].step
    return None


def predictions(firsts: Sequence[FirstResult], ranked: Sequence[Standing], better: Better) -> list[Prediction]:
    """The rank correlation of every number of the first stages with the scores, the highest first.

    Numbers of which lower or higher is not known to be better are left out, and those that are missing of a space.
    Empty with fewer than three latent spaces.
    """
    known = {first.space: first for first in firsts}
    spaces = [one for one in ranked if one.space in known]
    if len(spaces) < LEAST_RANKED:
        return []
    quality = ranks([one.score if better == "higher" else -one.score for one in spaces])
    found = []
    for name, direction in known[spaces[0].space].better.items():
        values = [known[one.space].metrics.get(name) for one in spaces]
        if any(value is None for value in values):
            continue
        signed = ranks([value if direction == "higher" else -value for value in values if value is not None])
        correlation = spearman(signed, quality)
        if correlation is not None:
            found.append(Prediction(name, direction, correlation, by_chance(signed, quality)))
    return sorted(found, key=lambda one: -one.correlation)


def ranks(values: Sequence[float]) -> list[float]:
    """Places from 1; equal values share the mean of theirs."""
    ordered = sorted(values)
    return [ordered.index(value) + 1 + (ordered.count(value) - 1) / 2 for value in values]


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """The correlation of two lists of ranks, in [-1, 1]; None where all ranks of a list are equal."""
    a, b = ([rank - mean(part) for rank in part] for part in (one, other))
    scale = math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / scale if scale > 0 else None


def by_chance(one: Sequence[float], other: Sequence[float]) -> float | None:
    """The share of all orders of `other` whose correlation with `one` is at least that of the given order.

    None for more than MOST_RANKED ranks.
    """
    if len(one) > MOST_RANKED:
        return None
    found = spearman(one, other)
    if found is None:
        return None
    orders = [spearman(one, order) for order in permutations(other)]
    return sum(1 for each in orders if each is not None and each >= found - 1e-9) / len(orders)


def conclusion(
    ranked: Sequence[Standing], firsts: Mapping[str, FirstResult], shown: Callable[[float], str]
) -> tuple[str, str]:
    """A headline and sentences for this data and budget, with scores as `shown` writes them.

    Requires a result of the plain latent space.
    """
    plain = next(one for one in ranked if one.space == PLAIN)
    best = ranked[0]
    margin = abs(best.score - plain.score)
    noise = max([one.spread or 0.0 for one in (best, plain)])
    scores = f"Its mean score is {shown(best.score)}, the plain one's {shown(plain.score)}"
    spread = f"seeds of either spread by at most {shown(noise)}"
    if best is plain:
        headline = "No latent space is better than the plain one"
        summary = "The regularised first stages bring no gain here: keep the plain one."
    elif plain.seeds == 1 or margin <= noise:
        headline = f"{best.space} is best, but by less than the spread between seeds"
        summary = f"{scores}; {'with one seed there is no spread' if plain.seeds == 1 else spread}."
    else:
        headline = f"{best.space} is the easiest to learn"
        summary = f"{scores}; {spread}."
        if best.time is not None and best.time < 1:
            summary += f" It reaches the plain one's quality after {best.time:.0%} of the training."
    unequal = [first.space for first in firsts.values() if not first.equal]
    if unequal:
        summary += f" Not at equal PSNR: {', '.join(unequal)}."
    return headline[0].upper() + headline[1:], summary
