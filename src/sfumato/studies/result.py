"""What a study found: an arm's numbers, and what follows from all of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from sfumato.checkpoint import write_text
from sfumato.plain_json import to_json
from sfumato.studies.evaluator import Score
from sfumato.studies.plan import Way


@dataclass(frozen=True)
class Moment:
    """A judgement while stage 2 trained: seconds of training of both stages so far, and the score."""

    seconds: float
    step: int
    kernel: float


@dataclass(frozen=True)
class Drawing:
    """A judgement of the finished model at a number of sampling steps."""

    steps: int
    images_per_second: float
    score: Score


@dataclass(frozen=True)
class Ceiling:
    """Of reconstructions: what no second stage on these latents can exceed, nearly."""

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
    """Of the whole data set once, foreseen from a few batches; not part of the budget."""
    operations: int
    """Of both trainings."""
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    curve: tuple[Moment, ...]
    drawings: tuple[Drawing, ...]
    ceiling: Ceiling | None
    """None in pixel space, where nothing is lost."""
    codes: bool = False
    """Stage 2 is a transformer over codes; its parameters stand for the denoiser's, an image's codes for steps."""

    @property
    def way(self) -> Way:
        """What was trained."""
        return Way(self.factor, self.codes)

    @property
    def final(self) -> Drawing:
        """The drawing with the best score."""
        return min(self.drawings, key=lambda drawing: drawing.score.kernel)

    def save(self, path: Path) -> None:
        """As JSON, atomically."""
        write_text(path, to_json(asdict(self), indent=1) + "\n")


def load_result(path: Path) -> ArmResult:
    """What `ArmResult.save` wrote."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    ceiling = raw.pop("ceiling")
    drawings = [Drawing(**{**d, "score": Score(**d["score"])}) for d in raw.pop("drawings")]
    curve = [Moment(**moment) for moment in raw.pop("curve")]
    for name in ("latent", "latent_mean", "latent_std"):
        raw[name] = tuple(raw[name])
    return ArmResult(
        **raw,
        curve=tuple(curve),
        drawings=tuple(drawings),
        ceiling=None if ceiling is None else Ceiling(Score(**ceiling["score"]), ceiling["psnr"], ceiling["ssim"]),
    )


@dataclass(frozen=True)
class Standing:
    """A way over its seeds."""

    way: Way
    kernel: float
    """Mean over seeds of the best drawing's distance."""
    spread: float
    """Between the seeds, largest less smallest; with one seed, the distance's deviation over subsets."""
    images_per_second: float
    seeds: int


def ways_of(results: Sequence[ArmResult]) -> list[Way]:
    """What was trained, by factor, the transformers last."""
    return sorted({result.way for result in results}, key=lambda way: (way.codes, way.factor))


def standings(results: Sequence[ArmResult]) -> list[Standing]:
    """Of every way that has a result, the best first."""
    found = []
    for way in ways_of(results):
        own = [result.final for result in results if result.way == way]
        values = [drawing.score.kernel for drawing in own]
        spread = max(values) - min(values) if len(values) > 1 else own[0].score.kernel_std
        rate = mean(drawing.images_per_second for drawing in own)
        found.append(Standing(way, mean(values), spread, rate, len(own)))
    return sorted(found, key=lambda standing: standing.kernel)


def close_to_best(ranked: Sequence[Standing]) -> list[Standing]:
    """The best, and those that cannot be told from it: within the larger of both spreads."""
    best = ranked[0]
    return [s for s in ranked if s.kernel - best.kernel <= max(best.spread, s.spread)]


def recommendation(results: Sequence[ArmResult]) -> tuple[str, str]:
    """A headline and a sentence for this data and this budget. Needs one result at least."""
    ranked = standings(results)
    best, close = ranked[0], close_to_best(ranked)
    quick = max(close, key=lambda standing: standing.images_per_second)
    headline = f"f = {quick.way.factor} suits this data"
    said = f"f = {best.way.factor} came closest to the data (kernel distance {best.kernel:.4f})"
    if len(close) > 1:
        others = ", ".join(f"f = {s.way.factor}" for s in close if s is not best)
        said += f"; {others} cannot be told from it by this study"
    if quick is not best:
        ratio = quick.images_per_second / best.images_per_second
        said += f", and f = {quick.way.factor} draws {ratio:.1f} times as fast"
    return headline, said + _of_chance(best)


def comparison(results: Sequence[ArmResult]) -> tuple[str, str]:
    """As `recommendation`, of methods: which came closest, and where the others are."""
    ranked = standings(results)
    best, close = ranked[0], close_to_best(ranked)
    if len(close) > 1:
        headline = f"{' and '.join(s.way.method for s in close)} cannot be told apart"
    else:
        headline = f"{best.way.method} comes closest to this data"
    said = f"{best.way.method} has a kernel distance of {best.kernel:.4f}"
    for other in ranked[1:]:
        ratio = best.images_per_second / other.images_per_second
        said += f"; {other.way.method} {other.kernel:.4f}, and draws {1 / ratio:.3g} times as fast"
    return headline[0].upper() + headline[1:], said[0].upper() + said[1:] + _of_chance(best)


def _of_chance(best: Standing) -> str:
    return "." if best.seeds > 1 else ". One seed was run: --seeds 3 tells chance from difference."
