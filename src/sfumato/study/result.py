"""What a study found: an arm's numbers, and what follows from all of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from sfumato.checkpoint import write_text
from sfumato.study.judge import Score


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
    pictures_per_second: float
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

    @property
    def final(self) -> Drawing:
        """The drawing with the best score."""
        return min(self.drawings, key=lambda drawing: drawing.score.kernel)

    def save(self, path: Path) -> None:
        """As JSON, atomically."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")


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
    """A factor over its seeds."""

    factor: int
    kernel: float
    """Mean over seeds of the best drawing's distance."""
    spread: float
    """Between the seeds, largest less smallest; with one seed, the distance's deviation over subsets."""
    pictures_per_second: float
    seeds: int


def standings(results: Sequence[ArmResult]) -> list[Standing]:
    """Of every factor that has a result, the best first."""
    found = []
    for factor in sorted({result.factor for result in results}):
        own = [result.final for result in results if result.factor == factor]
        values = [drawing.score.kernel for drawing in own]
        spread = max(values) - min(values) if len(values) > 1 else own[0].score.kernel_std
        rate = mean(drawing.pictures_per_second for drawing in own)
        found.append(Standing(factor, mean(values), spread, rate, len(own)))
    return sorted(found, key=lambda standing: standing.kernel)


def recommendation(results: Sequence[ArmResult]) -> tuple[str, str]:
    """A headline and a sentence for this data and this budget. Needs one result at least."""
    ranked = standings(results)
    best = ranked[0]
    close = [s for s in ranked if s.kernel - best.kernel <= max(best.spread, s.spread)]
    quick = max(close, key=lambda standing: standing.pictures_per_second)
    headline = f"f = {quick.factor} suits this data"
    said = f"f = {best.factor} came closest to the data (kernel distance {best.kernel:.4f})"
    if len(close) > 1:
        others = ", ".join(f"f = {s.factor}" for s in close if s is not best)
        said += f"; {others} cannot be told from it by this study"
    if quick is not best:
        ratio = quick.pictures_per_second / best.pictures_per_second
        said += f", and f = {quick.factor} draws {ratio:.1f} times as fast"
    if best.seeds == 1:
        said += ". One seed was run: --seeds 3 tells chance from difference"
    return headline, said + "."
