"""Quality of a trained model's images against the number of network calls, sampler by sampler, and guidance sweeps.

    python -m benchmarks.samplers MODEL --out FOLDER

A model of the toy world is measured by the toy's reader (the share of facts that hold) and by the Fréchet distance to
real held-out scenes in the features of a named network; any other model, with --real FOLDER and --prompts FILE, by the
distance alone. Every measurement is written to FOLDER/measurements.jsonl when it is made, and a second run goes on
from there. FOLDER/samplers.json, samplers.md and samplers.html are what came out.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from benchmarks.sampler_page import write_results
from benchmarks.tasks.given import run_of
from sfumato import load
from sfumato.cards.reference import reference
from sfumato.data.folder_config import FolderConfig
from sfumato.data.table import open_dataset
from sfumato.data.toyworld.dataset import ToyWorldConfig
from sfumato.data.toyworld.facts import Prompt
from sfumato.engine.precision import Precision, dtype_of
from sfumato.errors import UserError
from sfumato.evaluation.features import FeatureNetwork
from sfumato.evaluation.frechet import GaussianStatistics, frechet_distance
from sfumato.evaluation.table import load_network
from sfumato.images import to_uint8, to_unit
from sfumato.model import LatentDiffusion, SecondStage
from sfumato.pipeline import pipeline
from sfumato.pipeline.choices import chosen
from sfumato.pipeline.parts import second_stage
from sfumato.pipeline.request import DEFAULT_GUIDANCE, SampleRequest
from sfumato.report.machine import describe
from sfumato.report.measure import build_prompts, score_row
from sfumato.sampling.grids import build_grid
from sfumato.sampling.loop import sample as sampling_loop
from sfumato.sampling.table import SAMPLERS, SamplerConfig, build_sampler
from sfumato.training.workers import use_all_cores

CALLS = (4, 6, 8, 10, 15, 20, 30, 50, 100, 250)
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
INTERVALS = ((0.0, 1.0), (0.0, 0.8), (0.2, 0.8), (0.2, 1.0), (0.4, 0.8), (0.0, 0.6))
SWEEP_STEPS = 20


@dataclass(frozen=True)
class Cell:
    """One measurement to make."""

    sweep: str
    sampler: str
    steps: int
    guidance: float
    interval: tuple[float, float] = (0.0, 1.0)
    budget: int = 0
    """Network calls that were allowed; of guidance sweeps 0."""


@dataclass(frozen=True)
class PromptSet:
    """What is sampled, and what it is compared with."""

    texts: list[str] | None
    prompts: Sequence[Prompt] | None
    real: GaussianStatistics
    count: int


def cells(
    calls: Sequence[int],
    samplers: Sequence[str],
    second: SecondStage,
    guidance: float,
    sweeps: bool = True,
    sweep_steps: int = SWEEP_STEPS,
) -> Iterator[Cell]:
    """All measurements: the cheap ones first, so that an interrupted run has something of everything."""
    for budget in sorted(calls):
        for name in samplers:
            steps = steps_within(name, second, budget)
            if steps:
                yield Cell("calls", name, steps, guidance, budget=budget)
    if guidance == 1 or not sweeps:
        return
    for scale in SCALES:
        yield Cell("scale", "auto", sweep_steps, scale)
    for scale in (guidance, 2 * guidance):
        for interval in INTERVALS:
            yield Cell("interval", "auto", sweep_steps, scale, interval)


def calls_of(name: str, second: SecondStage, steps: int) -> int:
    """How often a sampler calls the network in so many steps on its usual grid: counted on a latent of one number."""
    choice = chosen(second, name, None, steps)
    schedule = second.schedule
    made = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        made.append(t)
        return x_t * 0

    grid = build_grid(choice.grid, schedule, steps)
    sampling_loop(
        build_sampler(choice.sampler), schedule, denoise, torch.zeros(1, 1).double(), grid, lambda s: torch.zeros(*s)
    )
    return len(made)


def steps_within(name: str, second: SecondStage, budget: int) -> int:
    """The most steps of a sampler that cost no more calls than the budget; 0 where even one costs more."""
    per_step = 1 if name == "auto" else SAMPLERS[name].calls
    for steps in range(min(budget // per_step + 1, second.schedule.steps), 0, -1):
        if calls_of(name, second, steps) <= budget:
            return steps
    return 0


def measured(
    model: LatentDiffusion, cell: Cell, prompt_set: PromptSet, network: FeatureNetwork, batch: int
) -> dict[str, Any]:
    """The scores of one cell: images are sampled from seeds 0, 1, ... whatever the sampler."""
    statistics = GaussianStatistics(network.dim)
    shown: list[Tensor] = []
    config: str | SamplerConfig = cell.sampler
    seconds = 0.0
    for first in range(0, prompt_set.count, batch):
        n = min(batch, prompt_set.count - first)
        request = SampleRequest(
            prompt=None if prompt_set.texts is None else prompt_set.texts[first : first + n],
            count=n,
            seeds=list(range(first, first + n)),
            steps=cell.steps,
            sampler=config,
            guidance=cell.guidance if prompt_set.texts is not None else None,
            interval=cell.interval,
            batch=batch,
        )
        t_start = time.perf_counter()
        images = pipeline.sample(model, request).images.clamp(-1, 1).cpu()
        seconds += time.perf_counter() - t_start
        statistics.update(network(images).pooled)
        shown.append(to_uint8(images))
    row: dict[str, Any] = {
        "frechet": frechet_distance(statistics, prompt_set.real),
        "seconds": seconds / prompt_set.count,
    }
    if prompt_set.prompts is not None:
        rates = score_row(cell.sampler, prompt_set.prompts, to_unit(torch.cat(shown))).rates
        row |= {"facts": rates["facts"], "prompts": rates["prompts"]}
    return row


def prompt_set_of(model: LatentDiffusion, options: argparse.Namespace, network: FeatureNetwork) -> PromptSet:
    """The prompts and the real images: of the model's toy world, or of a folder. Raises UserError for neither."""
    n: int = options.images
    if options.real is None:
        about = model.config.about.get("diffusion", {}).get("data", {})
        if about.get("kind") != "toy":
            raise UserError("this model was not trained on the toy world: give --real FOLDER, and --prompts FILE")
        known = (run_of(options.model, None) or {}).get("data", {})  # with the words that it was trained on
        config = ToyWorldConfig.model_validate(
            {**known, "kind": "toy", "size": model.config.image_size, "seed": about.get("seed", 0)}
        )
        toy = build_prompts(config, n)
        real = GaussianStatistics.of(network(images).pooled for images in toy.images.split(options.batch))
        return PromptSet(toy.captions, toy.prompts, real, n)
    texts = None
    if options.prompts is not None:
        lines = [line.strip() for line in options.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
        texts = [lines[i % len(lines)] for i in range(n)]
    dataset = open_dataset(FolderConfig(path=options.real, size=model.config.image_size))
    return PromptSet(texts, None, reference(network, dataset, None, options.out, options.batch).statistics, n)


def run(options: argparse.Namespace, say: Callable[[str], None] = print) -> None:
    """Measures what is not measured yet, and writes the results after every measurement."""
    options.out.mkdir(parents=True, exist_ok=True)
    network = load_network(options.features)
    model = load(options.model, options.device)
    second = second_stage(model)
    prompt_set = prompt_set_of(model, options, network)
    guidance = options.guidance if prompt_set.texts is not None else 1.0
    about = {
        "model": model.digest,
        "images": prompt_set.count,
        "features": network.describe(),
        "guidance": guidance,
        "machine": asdict(describe(model.device)),
    }
    key = f"{about['model']}, {prompt_set.count} images, {network.name}"
    model.for_inference(dtype_of(options.precision, model.device))
    wanted = list(cells(options.calls, options.samplers, second, guidance, options.sweeps, options.sweep_steps))
    path = options.out / "measurements.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = [row for row in rows if row["key"] == key]
    done = {json.dumps(row["cell"]) for row in rows}
    for place, cell in enumerate(wanted, 1):
        if json.dumps(asdict(cell)) in done:
            continue
        choice = chosen(second, cell.sampler, None, cell.steps, cell.guidance)
        row = {
            "key": key,
            "cell": asdict(cell),
            "took": choice.sampler.kind,
            "grid": choice.grid.kind,
            "calls": calls_of(cell.sampler, second, cell.steps),
            **measured(model, cell, prompt_set, network, options.batch),
        }
        with path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        rows.append(row)
        write_results(options.out, about, rows)
        score = f"{row['facts']:.1%} of facts, " if "facts" in row else ""
        interval = "" if cell.interval == (0.0, 1.0) else f", interval {cell.interval}"
        say(
            f"{place}/{len(wanted)} {cell.sampler}, {row['calls']} calls, guidance {cell.guidance:g}{interval}: "
            f"{score}Fréchet {row['frechet']:.2f}, {row['seconds']:.2f} s an image"
        )
    write_results(options.out, about, rows)
    say(f"results: {options.out / 'samplers.html'}, samplers.md, samplers.json")


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.samplers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    numbers = lambda text: [int(value) for value in text.split(",")]  # noqa: E731
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=256, help="sampled for each measurement")
    parser.add_argument("--calls", type=numbers, default=list(CALLS), help="network calls, with commas between")
    names = ["auto", *SAMPLERS]
    parser.add_argument("--samplers", type=lambda text: text.split(","), default=names, help="with commas between")
    parser.add_argument("--guidance", type=float, default=DEFAULT_GUIDANCE)
    parser.add_argument("--sweeps", action=argparse.BooleanOptionalAction, default=True, help="of guidance, too")
    parser.add_argument("--sweep-steps", type=int, default=SWEEP_STEPS, help="in which guidance is swept")
    parser.add_argument("--features", default="efficientnet-lite0", help="the network of the Fréchet distance")
    parser.add_argument("--real", type=Path, help="real images, where the model is not of the toy world")
    parser.add_argument("--prompts", type=Path, help="a prompt on each line, for --real")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", choices=get_args(Precision), default="auto", help="of the network's arithmetic")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.samplers if name not in names]
    if unknown:
        parser.error(f"--samplers {unknown[0]!r} is not one of {', '.join(names)}")
    if options.images < 2 or min(*options.calls, options.batch, options.sweep_steps) < 1:
        parser.error("--images takes at least 2, --calls, --batch and --sweep-steps at least 1")
    return options


if __name__ == "__main__":
    use_all_cores()
    try:
        run(parsed())
    except UserError as error:
        raise SystemExit(f"samplers: {error}") from None
