"""Which objective learns fastest: the same small denoiser on the same cached latents, trained with each, and scored.

    python -m benchmarks.objectives --autoencoder runs/ae --out ablation --minutes 10 --seeds 3

Stopped at any moment, the same command goes on where it was. Every variant has the same steps (`--steps`) or the same
time (`--minutes`, from its measured rate). Averages along the training are scored by the toy world's reader, so that
the table can say how long each variant takes to reach what the paper's recipe reaches at its end.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato import rng
from sfumato.checkpoint import write_text
from sfumato.cli.train import run_diffusion, with_data
from sfumato.config import apply_overrides, parse, read_source
from sfumato.data.toyworld.dataset import ToyWorldConfig
from sfumato.errors import UserError
from sfumato.evaluation.features import efficientnet_lite0, pooled
from sfumato.evaluation.kernel import kernel_distance
from sfumato.model import LatentDiffusion, load
from sfumato.report import measure
from sfumato.snapshots import load_snapshot, snapshots_of
from sfumato.training.diffusion import DiffusionRun
from sfumato.training.log import read_lines
from sfumato.training.workers import use_all_cores

PAPER = "eps"
"""The paper's recipe, which the others are measured against: eps, uniform weights, its schedule."""
WIDTH = 0.1
"""Of the averages that are scored: the same share of the training at each of its points."""
CALIBRATION = 24
"""Steps that are timed before a run of so many minutes; the first third is warming up."""

UNIFORM, LOGIT_NORMAL = {"kind": "uniform"}, {"kind": "logit-normal"}
HISTORY = {"kind": "loss-history", "base": UNIFORM}
LINEAR, COSINE, SIGMOID, FLOW = ({"kind": kind} for kind in ("linear", "cosine", "sigmoid", "flow"))
ZERO_TERMINAL = {"kind": "linear", "zero_terminal_snr": True}

Settings = tuple[dict[str, Any], dict[str, Any]]


def _variant(prediction: str, schedule: dict[str, Any], weighting: str = "uniform", **more: Any) -> Settings:
    """(objective, schedule) as a configuration spells them."""
    return {"prediction": prediction, "weighting": {"kind": weighting}, **more}, schedule


VARIANTS: dict[str, Settings] = {
    PAPER: _variant("eps", LINEAR),
    "eps, min-snr": _variant("eps", LINEAR, "min-snr"),
    "eps, p2": _variant("eps", LINEAR, "p2"),
    "eps, learned": _variant("eps", LINEAR, "learned"),
    "eps, loss history": _variant("eps", LINEAR, times={"kind": "loss-history"}),
    "x0, soft-min-snr": _variant("x0", LINEAR, "soft-min-snr", times=UNIFORM),
    "v": _variant("v", LINEAR, times=UNIFORM),
    "v, stratified": _variant("v", LINEAR, times=UNIFORM, stratified=True),
    "v, logit-normal": _variant("v", LINEAR, times=LOGIT_NORMAL),
    "v, loss history": _variant("v", LINEAR, times=HISTORY),
    "v, min-snr": _variant("v", LINEAR, "min-snr", times=UNIFORM),
    "v, soft-min-snr": _variant("v", LINEAR, "soft-min-snr", times=UNIFORM),
    "v, learned": _variant("v", LINEAR, "learned", times=UNIFORM),
    "v, l1": _variant("v", LINEAR, times=UNIFORM, loss="l1"),
    "v, cosine": _variant("v", COSINE, times=UNIFORM),
    "v, sigmoid": _variant("v", SIGMOID, times=UNIFORM),
    "v, zero terminal SNR": _variant("v", ZERO_TERMINAL, times=UNIFORM),
    "flow": _variant("flow", FLOW, times=UNIFORM),
    "flow, logit-normal": _variant("flow", FLOW, times=LOGIT_NORMAL),
    "flow, logit-normal, learned": _variant("flow", FLOW, "learned", times=LOGIT_NORMAL),
    "flow, loss history": _variant("flow", FLOW, times=HISTORY),
}


@dataclass(frozen=True)
class Point:
    """A score along the training: the share of facts that the reader finds true."""

    step: int
    seconds: float
    facts: float


@dataclass(frozen=True)
class Record:
    """One finished run."""

    variant: str
    seed: int
    steps: int
    points: tuple[Point, ...]
    distance: float | None = None
    """KD-efficientnet-lite0@96 of the last score's pictures to the prompts' real scenes; None without its weights."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and scores what is not done yet, and writes OUT/results.json and OUT/results.md after each run."""
    options = _parser().parse_args(arguments)
    use_all_cores()
    first = load(options.autoencoder)
    raw = with_data(apply_overrides(read_source(options.config), options.overrides), None, first.config.image_size)
    chosen = [name for name in VARIANTS if name == PAPER or any(part in name for part in options.only.split(";"))]
    records: list[Record] = []
    for seed in range(options.seeds):
        for name in chosen:
            record = _record(options, raw, name, seed, first)
            if record is None:
                sys.exit(130)
            records.append(record)
            write_text(options.out / "results.json", json.dumps([asdict(r) for r in records], indent=1) + "\n")
            write_text(options.out / "results.md", table(records))
    print(table(records))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objectives", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("overrides", nargs="*", help="settings to change in every run, such as train.batch=16")
    parser.add_argument("--autoencoder", type=Path, required=True, help="a run of stage 1 on the toy world")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default="zoo:toy/text", help="the denoiser and all else that is shared")
    parser.add_argument("--only", default="", help="variants that contain one of these, parted by ; beside the paper's")
    parser.add_argument("--seeds", type=int, default=1)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, help="of every run")
    length.add_argument("--minutes", type=float, help="of training, of every run")
    parser.add_argument("--points", type=int, default=4, help="scores along each training")
    parser.add_argument("--prompts", type=int, default=256, help="held-out prompts of each score")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--sampling-steps", type=int, default=20)
    return parser


def _record(
    options: argparse.Namespace, raw: dict[str, Any], name: str, seed: int, first: LatentDiffusion
) -> Record | None:
    """The run of a variant and a seed, from its file where it is finished; None where it was interrupted."""
    slug = f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    done = options.out / "records" / f"{slug}.json"
    if done.exists():
        found = json.loads(done.read_text(encoding="utf-8"))
        points = tuple(Point(**point) for point in found["points"])
        return Record(name, seed, found["steps"], points, found["distance"])
    steps = options.steps or _steps_for(options, raw, name, first)
    every = max(1, steps // options.points)
    config = _config(raw, name, seed, steps, every)
    print(f"{name}, seed {seed}: {steps} steps", flush=True)
    state = run_diffusion(config, first, options.out / "runs" / slug, options.out / "cache")
    if state.step < steps:
        return None
    points, distance = _scores(options, config, options.out / "runs" / slug, state.seconds / state.step)
    record = Record(name, seed, steps, points, distance)
    write_text(done, json.dumps(asdict(record), indent=1) + "\n")
    return record


def _config(raw: dict[str, Any], name: str, seed: int, steps: int, every: int) -> DiffusionRun:
    objective, schedule = VARIANTS[name]
    train: dict[str, Any] = {**raw.get("train", {}), "seed": seed, "steps": steps, "preview_every": steps}
    train["power_averages"] = {"widths": [WIDTH], "snapshot_every": every, "snapshots": steps // every + 2}
    return parse({**raw, "objective": objective, "schedule": schedule, "train": train}, DiffusionRun, name)


def _steps_for(options: argparse.Namespace, raw: dict[str, Any], name: str, first: LatentDiffusion) -> int:
    """How many steps of a variant fit into the minutes: measured once, and remembered."""
    file = options.out / "steps.json"
    known: dict[str, int] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    key = f"{name}, {options.minutes:g} minutes"
    if key not in known:
        run = options.out / "calibration" / name.replace(", ", "-").replace(" ", "-")
        config = _config(apply_overrides(raw, ["train.log_every=1"]), name, 0, CALIBRATION, CALIBRATION)
        run_diffusion(config, first, run, options.out / "cache")
        seconds = {line["step"]: line["seconds"] for line in read_lines(run / "log.jsonl") if "seconds" in line}
        warm = CALIBRATION // 3
        rate = (seconds[CALIBRATION] - seconds[warm]) / (CALIBRATION - warm)
        known[key] = max(options.points, round(options.minutes * 60 / rate))
        write_text(file, json.dumps(known, indent=1) + "\n")
    return known[key]


def _scores(
    options: argparse.Namespace, config: DiffusionRun, run: Path, per_step: float
) -> tuple[tuple[Point, ...], float | None]:
    """The reader's score of each snapshot, on the same prompts and seeds, and the distance of the last's pictures."""
    if not isinstance(config.data, ToyWorldConfig):
        raise UserError("the variants are scored by the toy world's reader: give a configuration with data.kind toy")
    asked = measure.ask(config.data, options.prompts)
    points, images = [], asked.images
    for snapshot in snapshots_of(run):
        model = load_snapshot(snapshot.path)
        images = measure.draw(model, asked.captions, options.guidance, options.sampling_steps)
        facts = measure.score_row("", asked.prompts, images, options.guidance).rates["facts"]
        points.append(Point(snapshot.step, round(snapshot.step * per_step, 2), round(facts, 4)))
    return tuple(points), _distance(asked.images, images)


def _distance(real: Tensor, drawn: Tensor) -> float | None:
    """The kernel distance, which is unbiased for few pictures too; None where the feature network is not installed."""
    try:
        network = efficientnet_lite0(96)
    except UserError:
        return None
    x, y = (pooled(network, images.split(64)) for images in (real, drawn))
    return round(kernel_distance(x, y, rng.generator(0, "distance")).mean, 6)


# ---- what comes out


def table(records: Sequence[Record]) -> str:
    """Markdown: a row for each variant, the best first."""
    by_variant: dict[str, list[Record]] = {}
    for record in records:
        by_variant.setdefault(record.variant, []).append(record)
    paper = mean_curve(by_variant[PAPER])
    rows = sorted(by_variant.items(), key=lambda item: -mean_curve(item[1])[-1].facts)
    lines = [
        "| objective | steps | minutes | facts right | spread | time to the paper's quality | KD |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in rows:
        curve, ends = mean_curve(runs), [run.points[-1].facts for run in runs]
        spread = f"± {statistics.stdev(ends):.1%}" if len(ends) > 1 else "–"
        needed = time_to(curve, paper[-1].facts)
        share = "not reached" if needed is None else f"{needed / paper[-1].seconds:.2f} ×"
        distances = [run.distance for run in runs if run.distance is not None]
        distance = f"{statistics.fmean(distances):.4f}" if distances else "–"
        end = curve[-1]
        lines.append(
            f"| {name} | {end.step} | {end.seconds / 60:.1f} | {end.facts:.1%} | {spread} | {share} | {distance} |"
        )
    seeds = len(by_variant[PAPER])
    said = f"Means over {seeds} seed{'s' if seeds > 1 else ''}. KD: kernel distance, efficientnet-lite0@96."
    return "\n".join([*lines, "", said, ""])


def mean_curve(runs: Sequence[Record]) -> list[Point]:
    """The points of a variant's runs, averaged over the seeds."""
    return [
        Point(
            points[0].step,
            statistics.fmean(p.seconds for p in points),
            statistics.fmean(p.facts for p in points),
        )
        for points in zip(*(run.points for run in runs), strict=False)
    ]


def time_to(curve: Sequence[Point], facts: float) -> float | None:
    """Seconds after which a score is first reached, linear between two points; None where it is not."""
    before = Point(0, 0.0, 0.0)
    for point in curve:
        if point.facts >= facts:
            share = 1.0 if point.facts == before.facts else (facts - before.facts) / (point.facts - before.facts)
            return before.seconds + max(0.0, share) * (point.seconds - before.seconds)
        before = point
    return None


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"objectives: {error}", file=sys.stderr)
        sys.exit(2)
