"""Which objective learns fastest: the same small denoiser on the same cached latents, trained with each, and scored.

    python -m benchmarks.objectives --autoencoder runs/ae --out ablation --minutes 10 --seeds 3

    python -m benchmarks.objectives --autoencoder runs/ae --config zoo:emoji/text --data images --out x --steps 900

Stopped at any moment, the same command goes on where it was. Every variant has the same steps (`--steps`) or the same
time (`--minutes`, from its measured rate). Averages along the training are scored, by the toy world's reader or, on
other images, by the kernel distance to real ones, so that the table can say how long each variant takes to reach what
the paper's recipe reaches at its end.
"""

import argparse
import json
import statistics
import sys
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
from sfumato.model_folder import load
from sfumato.report import measure
from sfumato.training.averages.snapshots import load_snapshot, snapshots_of
from sfumato.training.diffusion import DiffusionRun
from sfumato.training.log import read_lines
from sfumato.training.workers import Workers, use_all_cores

PAPER = "eps"
"""The paper's recipe, which the others are measured against: eps, uniform weights, its schedule."""
WIDTH = 0.1
"""Of the averages that are scored: the same share of the training at each of its points."""
CALIBRATION = 24
"""Steps that are timed before a run of so many minutes; the first third is warming up."""

UNIFORM, LOGIT_NORMAL = {"kind": "uniform"}, {"kind": "logit-normal"}
HISTORY = {"kind": "loss-history", "base": UNIFORM}
LINEAR, COSINE, SIGMOID, FLOW = ({"kind": kind} for kind in ("scaled-linear", "cosine", "sigmoid", "flow"))
ZERO_TERMINAL = {"kind": "scaled-linear", "zero_terminal_snr": True}

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


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and scores what is not done yet, and writes OUT/results.json and OUT/results.md after each run."""
    options = _parser().parse_args(arguments)
    use_all_cores()
    first = load(options.autoencoder)
    raw = apply_overrides(read_source(options.config), options.overrides)
    raw = with_data(raw, options.data, first.config.image_size)
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
    parser.add_argument(
        "--data", type=Path, help="a folder of images with captions, for a config that is not of the toy"
    )
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
        return Record(name, seed, found["steps"], points)
    steps = options.steps or _steps_for(options, raw, name, first)
    every = max(1, steps // options.points)
    config = _config(raw, name, seed, steps, every)
    print(f"{name}, seed {seed}: {steps} steps", flush=True)
    state = run_diffusion(config, first, options.out / "runs" / slug, options.out / "cache")
    if state.step < steps:
        return None
    points = _scores(options, config, options.out / "runs" / slug, state.seconds / state.step)
    record = Record(name, seed, steps, points)
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


def table(records: Sequence[Record]) -> str:
    """Markdown: a row for each variant, the best first."""
    by_variant: dict[str, list[Record]] = {}
    for record in records:
        by_variant.setdefault(record.variant, []).append(record)
    paper = mean_curve(by_variant[PAPER])
    rows = sorted(by_variant.items(), key=lambda item: -mean_curve(item[1])[-1].score)
    read = paper[-1].facts is not None
    columns = ["objective", "seeds", "steps", "minutes", *(["facts right", "spread"] if read else []), "KD", "spread"]
    columns.append("time to the paper's")
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for name, runs in rows:
        curve = mean_curve(runs)
        end = curve[-1]
        needed = time_to(curve, paper[-1].score)
        share = "not reached" if needed is None else f"{needed / paper[-1].seconds:.2f} ×"
        facts = f" {end.facts:.1%} | {_spread([run.points[-1].facts for run in runs], '.1%')} |" if read else ""
        distance = "–" if end.distance is None else f"{end.distance:.4g}"
        beside = _spread([run.points[-1].distance for run in runs], ".2g")
        lines.append(
            f"| {name} | {len(runs)} | {end.step} | {end.seconds / 60:.1f} |{facts} {distance} | {beside} | {share} |"
        )
    return "\n".join([*lines, "", "Means over the seeds. KD: kernel distance, efficientnet-lite0@96.", ""])


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


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"objectives: {error}", file=sys.stderr)
        sys.exit(2)
