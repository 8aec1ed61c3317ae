"""Variants of one recipe of stage 2, trained on the same cached latents, scored along the training, and compared.

The shared part of `benchmarks.objectives` and `benchmarks.denoisers`. Stopped at any moment, the same command goes on
where it was. Averages along the training are scored, by the toy world's reader or, on other images, by the kernel
distance to real ones, so that the table can say how long each variant takes to reach what the first one reaches at its
end.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato import rng
from sfumato.checkpoint import write_text
from sfumato.cli.run_configuration import with_data
from sfumato.cli.training_runs import run_diffusion
from sfumato.config import apply_overrides, parse, read_source
from sfumato.data.loader import sweep
from sfumato.data.table import open_dataset
from sfumato.data.toyworld.dataset import ToyWorldConfig
from sfumato.data.toyworld.facts import Prompt
from sfumato.errors import UserError
from sfumato.evaluation.features import efficientnet_lite0, pooled
from sfumato.evaluation.kernel import kernel_distance
from sfumato.model import LatentDiffusion
from sfumato.report import measure
from sfumato.training.averages.snapshots import load_snapshot, snapshots_of
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.workers import Workers

WIDTH = 0.1
"""Of the averages that are scored: the same share of the training at each of its points."""

Raw = dict[str, Any]
"""A configuration before it is checked."""


@dataclass(frozen=True)
class Comparison:
    """What is compared."""

    what: str
    """Heads the table's first column."""
    reference: str
    """The variant that the others are measured against."""
    reached: str
    """Heads the table's last column: the share of the reference's time after which a variant is as good."""
    changed: Callable[[Raw, str], Raw]
    """The recipe as the variant of this name has it."""


@dataclass(frozen=True)
class Point:
    """Scores along the training."""

    step: int
    seconds: float
    facts: float | None
    """The share that the reader finds true; None where no reader knows the images."""
    distance: float | None = None
    """KD-efficientnet-lite0@96 of the images to real ones; None without the network's weights."""

    @property
    def score(self) -> float:
        """The more the better: facts, or else the distance with a minus. Raises UserError where there is neither."""
        if self.facts is None and self.distance is None:
            raise UserError("without facts the variants are scored by a distance: pip install 'sfumato[offline]'")
        return self.facts if self.facts is not None else -(self.distance or 0.0)


@dataclass(frozen=True)
class Record:
    """One finished run."""

    variant: str
    seed: int
    steps: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Questions:
    """Captions, the prompts behind them where the reader can check them, and real images, (N, 3, H, W)."""

    captions: list[str]
    prompts: Sequence[Prompt] | None
    real: Tensor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every comparison, but for the length of its runs."""
    parser.add_argument("overrides", nargs="*", help="settings to change in every run, such as train.batch=16")
    parser.add_argument("--autoencoder", type=Path, required=True, help="a run of stage 1 on the same data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--data", type=Path, help="a folder of images with captions, for a config that is not of the toy"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--points", type=int, default=4, help="scores along each training")
    parser.add_argument("--prompts", type=int, default=256, help="held-out prompts of each score")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--sampling-steps", type=int, default=20)


def recipe(options: argparse.Namespace, first: LatentDiffusion) -> Raw:
    """The configuration that all variants change: `--config` with the overrides and the data."""
    raw = apply_overrides(read_source(options.config), options.overrides)
    return with_data(raw, options.data, first.config.image_size)


def compare(
    comparison: Comparison,
    options: argparse.Namespace,
    first: LatentDiffusion,
    raw: Raw,
    names: Sequence[str],
    steps_of: Callable[[str], int],
) -> list[Record] | None:
    """Trains and scores what is not done yet, and writes OUT/results.json and OUT/results.md after each run.

    None where a signal stopped it.
    """
    records: list[Record] = []
    for seed in range(options.seeds):
        for name in names:
            record = _record(comparison, options, raw, name, seed, first, steps_of)
            if record is None:
                return None
            records.append(record)
            write_text(options.out / "results.json", json.dumps([asdict(r) for r in records], indent=1) + "\n")
            write_text(options.out / "results.md", table(comparison, records))
    return records


def _record(
    comparison: Comparison,
    options: argparse.Namespace,
    raw: Raw,
    name: str,
    seed: int,
    first: LatentDiffusion,
    steps_of: Callable[[str], int],
) -> Record | None:
    """The run of a variant and a seed, from its file where it is finished; None where it was interrupted."""
    slug = f"{slug_of(name)}-{seed}"
    done, steps = options.out / "records" / f"{slug}.json", steps_of(name)
    if done.exists():
        found = json.loads(done.read_text(encoding="utf-8"))
        if found["steps"] != steps:
            raise UserError(
                f"--out {str(options.out)!r} has {name!r} with {found['steps']} steps, not {steps}: give another folder"
            )
        return Record(name, seed, steps, tuple(Point(**point) for point in found["points"]))
    every = max(1, steps // options.points)
    config = run_config(comparison, raw, name, seed, steps, every)
    print(f"{name}, seed {seed}: {steps} steps", flush=True)
    state = run_diffusion(config, first, options.out / "runs" / slug, options.out / "cache")
    if state.step < steps:
        return None
    points = _scores(options, config, options.out / "runs" / slug, state.seconds / state.step)
    record = Record(name, seed, steps, points)
    write_text(done, json.dumps(asdict(record), indent=1) + "\n")
    return record


def slug_of(name: str) -> str:
    """A variant's name as that of a folder."""
    return name.replace(", ", "-").replace(" ", "-")


def run_config(comparison: Comparison, raw: Raw, name: str, seed: int, steps: int, every: int) -> DiffusionRun:
    """The run of a variant and a seed, whose averages are kept every so many steps."""
    raw = comparison.changed(raw, name)
    train: Raw = {**raw.get("train", {}), "seed": seed, "steps": steps, "preview_every": steps}
    train["power_averages"] = {"widths": [WIDTH], "snapshot_every": every, "snapshots": steps // every + 2}
    return parse({**raw, "train": train}, DiffusionRun, name)


def _scores(options: argparse.Namespace, config: DiffusionRun, run: Path, per_step: float) -> tuple[Point, ...]:
    """Of each snapshot, on the same captions and seeds."""
    prompt_set = _questions(config, options.prompts)
    distance, device = _judge(prompt_set.real), Workers().device
    points = []
    for snapshot in snapshots_of(run):
        model = load_snapshot(snapshot.path, device=device).for_inference()
        images = measure.sample(model, prompt_set.captions, options.guidance, options.sampling_steps)
        facts = None
        if prompt_set.prompts is not None:
            facts = round(measure.score_row("", prompt_set.prompts, images, options.guidance).rates["facts"], 4)
        seconds = round(snapshot.step * per_step, 2)
        points.append(Point(snapshot.step, seconds, facts, distance(images)))
    return tuple(points)


def _questions(config: DiffusionRun, n: int) -> Questions:
    """Held-out scenes of the toy world, or captions of a folder, evenly spread, and four times as many images."""
    if isinstance(config.data, ToyWorldConfig):
        prompt_set = measure.build_prompts(config.data, n)
        return Questions(prompt_set.captions, prompt_set.prompts, prompt_set.images)
    dataset = open_dataset(config.data)
    captions = dataset.captions()
    if captions is None:
        raise UserError("the variants sample with captions: give a folder of images that have some")
    chosen = [round(i * (len(dataset) - 1) / max(1, 4 * n - 1)) for i in range(4 * n)]
    read = sweep(dataset, 64, sorted(set(chosen)), unreadable=lambda row, error: None)
    real = torch.cat([batch.images for batch in read])
    return Questions([captions[row] for row in chosen[::4]], None, real)


def _judge(real: Tensor) -> Callable[[Tensor], float | None]:
    """The kernel distance of images to real ones, unbiased for few too; None without the network's package."""
    try:
        network = efficientnet_lite0(96)
    except UserError:
        return lambda _: None
    x = pooled(network, real.split(64))

    def distance(sampled: Tensor) -> float:
        y = pooled(network, sampled.split(64))
        return round(kernel_distance(x, y, rng.generator(0, "distance")).mean, 6)

    return distance


# ---- what comes out


def table(comparison: Comparison, records: Sequence[Record]) -> str:
    """Markdown: a row for each variant, the best first, and the scores of each seed."""
    by_variant: dict[str, list[Record]] = {}
    for record in records:
        by_variant.setdefault(record.variant, []).append(record)
    reference = mean_curve(by_variant[comparison.reference])
    rows = sorted(by_variant.items(), key=lambda item: -mean_curve(item[1])[-1].score)
    read = reference[-1].facts is not None
    columns = [
        comparison.what,
        "seeds",
        "steps",
        "minutes",
        *(["facts right", "spread"] if read else []),
        "KD",
        "spread",
    ]
    columns.append(comparison.reached)
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for name, runs in rows:
        curve = mean_curve(runs)
        end = curve[-1]
        needed = time_to(curve, reference[-1].score)
        share = "not reached" if needed is None else f"{needed / reference[-1].seconds:.2f} ×"
        facts = f" {end.facts:.1%} | {_spread([run.points[-1].facts for run in runs], '.1%')} |" if read else ""
        distance = "–" if end.distance is None else f"{end.distance:.4g}"
        beside = _spread([run.points[-1].distance for run in runs], ".2g")
        lines.append(
            f"| {name} | {len(runs)} | {end.step} | {end.seconds / 60:.1f} |{facts} {distance} | {beside} | {share} |"
        )
    lines += ["", "Means over the seeds. KD: kernel distance, efficientnet-lite0@96.", ""]
    return "\n".join([*lines, *(f"- {name}: {_by_seed(runs)}" for name, runs in rows), ""])


def _by_seed(runs: Sequence[Record]) -> str:
    """The last scores of each seed."""

    def scores(point: Point) -> str:
        facts = [] if point.facts is None else [f"{point.facts:.1%}"]
        return ", ".join([*facts, *([] if point.distance is None else [f"KD {point.distance:.4g}"])])

    return "; ".join(f"seed {run.seed} {scores(run.points[-1])}" for run in runs)


def _spread(values: Sequence[float | None], form: str) -> str:
    """The standard deviation between seeds."""
    known = [value for value in values if value is not None]
    return f"± {statistics.stdev(known):{form}}" if len(known) > 1 else "–"


def mean_curve(runs: Sequence[Record]) -> list[Point]:
    """The points of a variant's runs, averaged over the seeds."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known else None

    return [
        Point(
            points[0].step,
            statistics.fmean(p.seconds for p in points),
            mean([p.facts for p in points]),
            mean([p.distance for p in points]),
        )
        for points in zip(*(run.points for run in runs), strict=False)
    ]


def time_to(curve: Sequence[Point], score: float) -> float | None:
    """Seconds after which a score is first reached, linear between two points; None where it is not.

    Facts begin at none; of a distance the first point that is near enough counts whole.
    """
    before = Point(0, 0.0, 0.0) if curve[0].facts is not None else curve[0]
    for point in curve:
        if point.score >= score:
            share = 1.0 if point.score == before.score else (score - before.score) / (point.score - before.score)
            return before.seconds + max(0.0, share) * (point.seconds - before.seconds)
        before = point
    return None
