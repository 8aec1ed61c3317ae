"""How well a model does one of the paper's tasks, from ground truth.

    python -m benchmarks.tasks semantic MODEL --out FOLDER

Held-out scenes of the toy world are given to the task's public function, and what it samples is read back by the toy
world's reader. Super-resolution and inpainting are measured on images of a folder too (--data). FOLDER/TASK.json,
TASK.md and TASK.png are what came out; the images are the first ones, not chosen ones.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.tasks import editing, inpainting, layout, semantic, super_resolution
from benchmarks.tasks.given import Given, folder_images, run_of, toy_scenes
from benchmarks.tasks.result import Outcome, machine_of, write_results
from sfumato import load
from sfumato.cli.forms import scale_of
from sfumato.data.toyworld.scene import Split
from sfumato.errors import UserError
from sfumato.pipeline.request import DEFAULT_STEPS
from sfumato.report.machine import describe
from sfumato.tasks import task_options
from sfumato.training.workers import use_all_cores

TASKS: Mapping[str, Callable[[Given, argparse.Namespace], Outcome]] = {
    "semantic": lambda given, options: semantic.measure(given),
    "layout": lambda given, options: layout.measure(given),
    "super-res": lambda given, options: super_resolution.measure(given, options.regression),
    "inpainting": lambda given, options: inpainting.measure(given),
    "edit": lambda given, options: editing.measure(given, options.strengths),
}


def run(options: argparse.Namespace, say: Callable[[str], None] = print) -> Outcome:
    """Measures, and writes what came out. Raises UserError for a model that does another task."""
    model = load(options.model, options.device)
    model.for_inference()
    settings = task_options(
        seed=options.seed,
        steps=options.steps,
        sampler=options.sampler,
        guidance=None if options.guidance is None else scale_of("--guidance", options.guidance),
        batch=options.batch,
    )
    raw = run_of(options.model, options.config)
    if options.data is None:
        given = toy_scenes(model, raw, options.n, options.split, settings)
    else:
        given = folder_images(model, raw, options.data, options.n, options.captions, settings)
    outcome = TASKS[options.task](given, options)
    options.out.mkdir(parents=True, exist_ok=True)
    write_results(options.out, options.task, _about(given, options), outcome)
    for table in outcome.tables:
        say(table.markdown())
    say(f"results: {options.out / options.task}.md, .json and .png")
    return outcome


def _about(given: Given, options: argparse.Namespace) -> dict[str, Any]:
    count = len(given.images)
    about = given.model.config.about.get("diffusion", {})
    return {
        "task": options.task,
        "command": f"python -m benchmarks.tasks {shlex.join(options.typed)}",
        "model": given.model.digest,
        "trained": f"{about.get('steps', 'unknown')} steps",
        "images": count,
        "data": given.what,
        "seeds": f"{options.seed} to {options.seed + count - 1}",
        "steps": options.steps,
        "sampler": options.sampler,
        "guidance": options.guidance or "as the command has it",
        "batch": options.batch,
        "machine": machine_of(describe(given.model.device)),
    }


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tasks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("task", choices=TASKS)
    add("model", type=Path, help="a run, or a model folder")
    add("--out", type=Path, required=True, help="the folder for the results")
    add("--n", type=int, default=256, help="images")
    add("--seed", type=int, default=0, help="of the first image")
    add("--steps", type=int, default=DEFAULT_STEPS)
    add("--sampler", default=task_options().sampler)
    add("--guidance", help="a scale, or one for each part, such as text=3")
    add("--batch", type=int, default=32, help="images that are sampled at once")
    add("--split", choices=get_args(Split)[1:], default="held-out", help="of the toy world")
    add("--data", type=Path, help="images of a folder instead of the toy world: super-res and inpainting")
    add("--captions", action="store_true", help="sample with the captions of --data")
    add("--config", help="the model's run configuration, where the run's folder is not there: a file or zoo:NAME")
    add("--regression", type=Path, help="super-res: a network by benchmarks.regression to set beside the model")
    add("--strengths", type=_numbers, default=list(editing.STRENGTHS), help="edit: with commas between")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    options.typed = list(sys.argv[1:] if arguments is None else arguments)
    if min(options.n, options.steps, options.batch) < 1:
        parser.error("--n, --steps and --batch take at least 1")
    if not all(0 <= strength <= 1 for strength in options.strengths):
        parser.error("--strengths takes numbers from 0 to 1")
    return options


def _numbers(text: str) -> list[float]:
    return [float(value) for value in text.split(",")]


if __name__ == "__main__":
    use_all_cores()
    try:
        run(parsed())
    except UserError as error:
        raise SystemExit(f"tasks: {error}") from None
