"""The page of a study of joint training: table, curves of PSNR, spread and effective rank, images, conclusion."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from torch import Tensor

from sfumato.report.svg import Series, line_chart
from sfumato.report.templating import render as fill
from sfumato.studies.folder import read_image
from sfumato.studies.joint.arm import RECONSTRUCTIONS_FILE, SAMPLES_FILE
from sfumato.studies.joint.plan import Arm, JointStudyConfig, Way, arms
from sfumato.studies.joint.result import HealthPoint, JointResult, Standing, conclusion, standings

DESCRIBED: dict[Way, str] = {
    "two-stage": "one stage after the other",
    "naive": "naive: both losses added",
    "detached": "detached: stage 2 does not reach the encoder",
    "prior": "prior: the denoiser's bound in place of the KL term",
    "anchored": "anchored: the decoded expected image",
}


def render(
    config: JointStudyConfig,
    results: Sequence[JointResult],
    folder: Path,
    network: str,
    machine: str,
    command: str,
) -> str:
    """The whole page for the arms that are finished so far; their images are read from the study's `folder`.

    Args:
        network: the name of the feature network of the distances.
        machine: where the study ran, for the reader.
        command: the command line that repeats the study.
    """
    ranked = standings(results)
    charts = (
        (_chart(results, lambda point: point.psnr, "PSNR in dB"), "PSNR of held-out images, averaged weights."),
        (
            _chart(results, lambda point: point.spread, "standard deviation", log=True),
            "Spread: the standard deviation of the raw latents, mean over channels, logarithmic.",
        ),
        (
            _chart(results, lambda point: point.rank, "effective rank"),
            "Effective rank of the latents, normalised per channel, as a share of their numbers.",
        ),
    )
    return fill(
        "joint_study.html",
        config=config,
        summary=conclusion(results) or "Only one way was trained: there is nothing to compare.",
        finished=len(results),
        total=len(arms(config)),
        network=network,
        means=[_means(one) for one in ranked],
        kinds=_kinds(results),
        numbers=[_numbers(result) for result in results],
        facts=[
            [f"{one.way}, seed {one.seed}", *(_percent(one.facts.get(kind)) for kind in _kinds(results))]
            for one in results
        ],
        charts=charts,
        galleries=[_gallery(results, folder, one.way) for one in ranked],
        machine=machine,
        command=command,
    )


def _chart(
    results: Sequence[JointResult], value: Callable[[HealthPoint], float], label: str, log: bool = False
) -> Markup:
    """A number over the minutes of training; further seeds of a way are fainter and share its name in the legend."""
    series, ways = [], list(dict.fromkeys(result.way for result in results))
    for result in results:
        first = next(one for one in results if one.way == result.way) is result
        points = [(point.seconds / 60, value(point)) for point in result.curve]
        series.append(Series(result.way if first else "", points, ways.index(result.way), faint=not first))
    return line_chart(series, "minutes of training", label, log, 1036, 320)


def _means(one: Standing) -> list[str]:
    return [
        DESCRIBED[one.way],
        str(one.seeds),
        "not finite" if one.kernel is None else f"{one.kernel:.4f}" + _range(one, f"{one.kernel_spread:.4f}"),
        "–" if one.facts is None else _percent(one.facts) + _range(one, f"{100 * one.facts_spread:.1f}"),
        f"{one.psnr:.2f}" + _range(one, f"{one.psnr_spread:.2f}"),
        f"{one.collapsed} of {one.seeds}" if one.collapsed else "none",
    ]


def _range(one: Standing, shown: str) -> str:
    return f" ({shown})" if one.seeds > 1 else ""


def _kinds(results: Sequence[JointResult]) -> list[str]:
    """The kinds of facts that the samples were read for."""
    return [kind for kind in next((one.facts for one in results if one.facts), {}) if kind != "facts"]


def _numbers(result: JointResult) -> list[str]:
    last = result.curve[-1] if result.curve else None
    return [
        f"{result.way}, seed {result.seed}",
        "not finite" if result.kernel is None else f"{result.kernel:.4f}",
        _percent(result.facts.get("facts")),
        f"{result.psnr:.2f}",
        "–" if last is None else f"{last.spread:.3g}",
        "–" if last is None else f"{last.rank:.3f}",
        f"{result.steps:,}" + (f" + {result.second_steps:,}" if result.second_steps else ""),
        f"{result.seconds / 60:.2f}",
        ", ".join(result.collapsed).replace("_", " ") or "no",
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _gallery(results: Sequence[JointResult], folder: Path, way: Way) -> dict[str, Any]:
    """Samples and reconstructions of a way's first seed."""
    result = next(result for result in results if result.way == way)
    home = folder / Arm(way, result.seed).name
    return {
        "name": DESCRIBED[way],
        "samples": _image(home / SAMPLES_FILE),
        "reconstructions": _image(home / RECONSTRUCTIONS_FILE),
    }


def _image(path: Path) -> Tensor | None:
    return read_image(path) if path.exists() else None
