"""The results of a study of joint training: the numbers of each arm, and the conclusion from all of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from sfumato.checkpoint import write_text
from sfumato.plain_json import to_json
from sfumato.studies.joint.plan import TWO_STAGE, Way


@dataclass(frozen=True)
class HealthPoint:
    """The autoencoder on held-out images during training: seconds of training so far, PSNR in dB, the mean over
    channels of the latents' standard deviation, their effective rank in (0, 1]."""

    seconds: float
    psnr: float
    spread: float
    rank: float


@dataclass(frozen=True)
class JointResult:
    """One training of a study.

    Attributes:
        seconds: of training, and of encoding where stage 2 follows stage 1.
        steps: of stage 1, or of both at once; second_steps: of stage 2 where it follows.
        psnr: of held-out images, in dB.
        kernel: kernel distance of the samples from the training images, and its deviation over subsets; None if the
            samples are not finite.
        facts: share of the captions' facts that hold in the samples, by kind, "facts" for all; of the toy world only.
        collapsed: what the log warned of: spread, effective_rank, psnr.
        curve: by time.
    """

    way: Way
    seed: int
    seconds: float
    steps: int
    second_steps: int
    psnr: float
    kernel: float | None
    kernel_std: float | None
    facts: dict[str, float]
    collapsed: tuple[str, ...]
    curve: tuple[HealthPoint, ...]

    def save(self, path: Path) -> None:
        """Writes JSON, atomically."""
        write_text(path, to_json(asdict(self), indent=1) + "\n")


def load_result(path: Path) -> JointResult:
    """Reads what `JointResult.save` wrote."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["curve"] = tuple(HealthPoint(**point) for point in raw["curve"])
    raw["collapsed"] = tuple(raw["collapsed"])
    return JointResult(**raw)


@dataclass(frozen=True)
class Standing:
    """A way's means over its seeds, and largest minus smallest of them."""

    way: Way
    seeds: int
    kernel: float | None
    kernel_spread: float
    facts: float | None
    facts_spread: float
    psnr: float
    psnr_spread: float
    collapsed: int
    """Of its trainings."""


def standings(results: Sequence[JointResult]) -> list[Standing]:
    """The standing of every way that has a result, in the order of the results."""
    found = []
    for way in dict.fromkeys(result.way for result in results):
        own = [result for result in results if result.way == way]
        kernels = [one.kernel for one in own if one.kernel is not None]
        facts = [one.facts["facts"] for one in own if "facts" in one.facts]
        psnr = [one.psnr for one in own]
        found.append(
            Standing(
                way=way,
                seeds=len(own),
                kernel=mean(kernels) if len(kernels) == len(own) else None,
                kernel_spread=_range(kernels),
                facts=mean(facts) if facts else None,
                facts_spread=_range(facts),
                psnr=mean(psnr),
                psnr_spread=_range(psnr),
                collapsed=sum(bool(one.collapsed) for one in own),
            )
        )
    return found


def conclusion(results: Sequence[JointResult]) -> str:
    """Compares the kernel distance of each way with that of the two-stage one, in a few sentences."""
    ranked = standings(results)
    before = next((one for one in ranked if one.way == TWO_STAGE), None)
    sentences = []
    for one in ranked:
        if one.way == TWO_STAGE:
            continue
        sentences.append(f"{one.way}: {_compared(one, before)}{_collapse(one)}.")
    if before is not None and before.kernel is not None:
        sentences.insert(0, f"One stage after the other has a kernel distance of {before.kernel:.4f}.")
    return " ".join(sentences)


def _compared(one: Standing, before: Standing | None) -> str:
    if one.kernel is None:
        return "its samples are not finite"
    if before is None or before.kernel is None:
        return f"kernel distance {one.kernel:.4f}"
    difference, noise = one.kernel - before.kernel, max(one.kernel_spread, before.kernel_spread)
    if abs(difference) <= noise or min(one.seeds, before.seeds) < 2:
        return f"kernel distance {one.kernel:.4f}, no clear difference with these seeds"
    return f"kernel distance {one.kernel:.4f}, {'worse' if difference > 0 else 'better'} than with one after the other"


def _collapse(one: Standing) -> str:
    return "" if not one.collapsed else f"; the latents collapsed in {one.collapsed} of {one.seeds} trainings"


def _range(values: Sequence[float]) -> float:
    return max(values) - min(values) if values else 0.0
