"""The results of a study: the numbers of each arm, and the conclusion from all of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from sfumato.checkpoint import write_text
from sfumato.plain_json import to_json
from sfumato.studies.evaluator import Score
from sfumato.studies.plan import Method


@dataclass(frozen=True)
class CurvePoint:
    """A score during the training of stage 2, with the training seconds of both stages so far."""

    seconds: float
    step: int
    kernel: float


@dataclass(frozen=True)
class SamplingResult:
    """Speed and score of the finished model at a number of sampling steps."""

    steps: int
    images_per_second: float
    score: Score


@dataclass(frozen=True)
class Ceiling:
    """Scores of reconstructions: approximately the best that a second stage on these latents can reach."""

    score: Score
    psnr: float
    ssim: float


@dataclass(frozen=True)
class ArmResult:
    """One training of a study."""

    factor: int
    seed: int
    latent: tuple[int, int, int]
    autoencoder_parameters: int
    denoiser_parameters: int
    first_steps: int
    second_steps: int
    first_seconds: float
    second_seconds: float
    encoding_seconds: float
    """Of the whole dataset once, forecast from a few batches; not part of the budget."""
    operations: int
    """Of both trainings."""
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    curve: tuple[CurvePoint, ...]
    sampling: tuple[SamplingResult, ...]
    ceiling: Ceiling | None
    """None in pixel space, which has no reconstruction error."""
    codes: bool = False
    """Stage 2 is a transformer over codes: `denoiser_parameters` are its, sampling steps an image's codes."""

    @property
    def method(self) -> Method:
        """The method that was trained."""
        return Method(self.factor, self.codes)

    @property
    def final(self) -> SamplingResult:
        """The sampling result with the best score."""
        return min(self.sampling, key=lambda one: one.score.kernel)

    def save(self, path: Path) -> None:
        """Writes JSON, atomically."""
        write_text(path, to_json(asdict(self), indent=1) + "\n")


def load_result(path: Path) -> ArmResult:
    """Reads what `ArmResult.save` wrote."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    ceiling = raw.pop("ceiling")
    sampling = [SamplingResult(**{**d, "score": Score(**d["score"])}) for d in raw.pop("sampling")]
    curve = [CurvePoint(**point) for point in raw.pop("curve")]
    for name in ("latent", "latent_mean", "latent_std"):
        raw[name] = tuple(raw[name])
    return ArmResult(
        **raw,
        curve=tuple(curve),
        sampling=tuple(sampling),
        ceiling=None if ceiling is None else Ceiling(Score(**ceiling["score"]), ceiling["psnr"], ceiling["ssim"]),
    )


@dataclass(frozen=True)
class Standing:
    """A method's mean result over its seeds."""

    method: Method
    kernel: float
    """Mean over seeds of the distance at the best number of sampling steps."""
    spread: float
    """Largest minus smallest over the seeds; with one seed, the deviation of the distance over subsets."""
    images_per_second: float
    seeds: int


def methods_of(results: Sequence[ArmResult]) -> list[Method]:
    """The methods that were trained, by factor, transformers last."""
    return sorted({result.method for result in results}, key=lambda method: (method.codes, method.factor))


def standings(results: Sequence[ArmResult]) -> list[Standing]:
    """The standing of every method that has a result, the best first."""
    found = []
    for method in methods_of(results):
        own = [result.final for result in results if result.method == method]
        values = [one.score.kernel for one in own]
        spread = max(values) - min(values) if len(values) > 1 else own[0].score.kernel_std
        rate = mean(one.images_per_second for one in own)
        found.append(Standing(method, mean(values), spread, rate, len(own)))
    return sorted(found, key=lambda standing: standing.kernel)


def close_to_best(ranked: Sequence[Standing]) -> list[Standing]:
    """The best, and those that are indistinguishable from it: within the larger of both spreads."""
    best = ranked[0]
    return [s for s in ranked if s.kernel - best.kernel <= max(best.spread, s.spread)]


def recommendation(results: Sequence[ArmResult]) -> tuple[str, str]:
    """A headline and a sentence for this data and this budget. Requires at least one result."""
    ranked = standings(results)
    best, close = ranked[0], close_to_best(ranked)
    quick = max(close, key=lambda standing: standing.images_per_second)
    headline = f"f = {quick.method.factor} suits this data"
    summary = f"f = {best.method.factor} came closest to the data (kernel distance {best.kernel:.4f})"
    if len(close) > 1:
        others = ", ".join(f"f = {s.method.factor}" for s in close if s is not best)
        summary += f"; {others} {'is' if len(close) == 2 else 'are'} indistinguishable from it in this study"
    if quick is not best:
        ratio = quick.images_per_second / best.images_per_second
        summary += f", and f = {quick.method.factor} samples {ratio:.1f} times as fast"
    return headline, summary + _seeds_note(best)


def comparison(results: Sequence[ArmResult]) -> tuple[str, str]:
    """As `recommendation`, but compares methods: which came closest, and how far off the others are."""
    ranked = standings(results)
    best, close = ranked[0], close_to_best(ranked)
    if len(close) > 1:
        headline = f"{' and '.join(s.method.long_name for s in close)} are indistinguishable"
    else:
        headline = f"{best.method.long_name} comes closest to this data"
    summary = f"{best.method.long_name} has a kernel distance of {best.kernel:.4f}"
    for other in ranked[1:]:
        ratio = best.images_per_second / other.images_per_second
        summary += f"; {other.method.long_name} {other.kernel:.4f}, sampling {1 / ratio:.3g} times as fast"
    return headline[0].upper() + headline[1:], summary[0].upper() + summary[1:] + _seeds_note(best)


def _seeds_note(best: Standing) -> str:
    return "." if best.seeds > 1 else ". One seed was run: --seeds 3 shows whether the difference is chance."
