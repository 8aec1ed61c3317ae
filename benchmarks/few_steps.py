"""Students beside their teacher: facts, kernel distance and time at one to eight steps, and images of equal seeds.

    python -m benchmarks.few_steps TEACHER STUDENT... --out FOLDER

For a teacher of the toy world, a run or a model folder, the reader finds the facts of held-out captions, and guidance
is chosen for every row by the share of facts on captions that are not reported. For a run on captioned images the
captions are of random training images, and guidance is chosen by the kernel distance to these. FOLDER/few-steps.json,
few-steps.md and few-steps.png are the results; every row is kept in FOLDER/rows.jsonl, and a second run goes on from
there.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.tasks.given import run_of
from sfumato import load
from sfumato.cli.real_images import known_world
from sfumato.data.table import open_dataset
from sfumato.data.toyworld.dataset import ToyWorldConfig
from sfumato.data.toyworld.facts import Prompt
from sfumato.engine.precision import dtype_of
from sfumato.errors import UserError
from sfumato.evaluation.features import FeatureNetwork
from sfumato.evaluation.kernel import squared_mmd
from sfumato.evaluation.table import load_network
from sfumato.images import image_grid, png_bytes, save_png, to_uint8, to_unit
from sfumato.model import LatentDiffusion
from sfumato.pipeline import pipeline
from sfumato.pipeline.parts import second_stage
from sfumato.pipeline.request import DecoderName, SampleRequest
from sfumato.report.machine import describe
from sfumato.report.measure import PromptSet, build_prompts, score_row
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.workers import use_all_cores

SCALES = (1.5, 2.0, 3.0, 4.5)
STEPS = (1, 2, 4, 8)
TEACHER_STEPS = 20
SHOWN = 8


@dataclass(frozen=True)
class Row:
    """A model at a number of steps: shares of true facts and of perfect prompts, None outside the toy world; kernel
    distance; processor seconds an image from prompt to PNG, and those with the tiny decoder, None where the model
    has none."""

    model: str
    steps: int
    calls: int
    guidance: float
    facts: float | None
    prompts: float | None
    kernel: float
    seconds: float
    tiny_seconds: float | None = None


@dataclass(frozen=True)
class Half:
    """Captions with features (N, D) of their images; what the captions state, where it can be read."""

    captions: Sequence[str]
    real: Tensor
    prompts: Sequence[Prompt] | None

    def quality(self, images: Tensor, network: FeatureNetwork) -> float:
        """Share of true facts, or else the negative kernel distance: the higher the better."""
        if self.prompts is not None:
            return score_row("", self.prompts, images).rates["facts"]
        return -self.distance(images, network)

    def distance(self, images: Tensor, network: FeatureNetwork) -> float:
        """Kernel distance of samples (N, 3, H, W) in [-1, 1] to the captions' images."""
        return squared_mmd(features_of(images, network), self.real)


@dataclass(frozen=True)
class Exam:
    """Captions to choose guidance by, and captions to report."""

    chosen_by: Half
    reported: Half
    network: FeatureNetwork


def features_of(images: Tensor, network: FeatureNetwork) -> Tensor:
    """(N, D) of images (N, 3, H, W) in [-1, 1]."""
    return torch.cat([network(part).pooled for part in images.split(64)])


def exam_of(teacher: Path, count: int, features: str) -> Exam:
    """Held-out scenes of the teacher's toy world, or images of its run. Raises UserError where there are neither."""
    raw = run_of(teacher, None) or {}
    network = load_network(features)
    if "data" in raw and raw["data"].get("kind") != "toy":
        config = DiffusionRun.model_validate(raw)
        return Exam(*image_halves(config, count, network), network)
    world = ToyWorldConfig.model_validate(raw["data"]) if raw else known_world(load(teacher))
    if world is None:
        raise UserError("the teacher is neither a run nor a model of the toy world: there is nothing to compare with")
    made: PromptSet = build_prompts(world, 2 * count)
    first, second = (
        Half(
            [prompt.caption for prompt in made.prompts[part]],
            features_of(made.images[part], network),
            made.prompts[part],
        )
        for part in (slice(count), slice(count, None))
    )
    return Exam(first, second, network)


def image_halves(config: DiffusionRun, count: int, network: FeatureNetwork) -> tuple[Half, Half]:
    """Random images of the run's data with their captions. Raises UserError where fewer than two halves have one."""
    dataset = open_dataset(config.data)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    captioned = (example for example in map(dataset.__getitem__, order) if example.fields.get("text"))
    examples = list(islice(captioned, 2 * count))
    if len(examples) < 2 * count:
        raise UserError(f"--images {count} needs {2 * count} images with captions, and there are {len(examples)}")
    first, second = (
        Half(
            [str(example.fields["text"]) for example in part],
            features_of(to_unit(torch.stack([example.image for example in part])), network),
            None,
        )
        for part in (examples[:count], examples[count:])
    )
    return first, second


def sampled(model: LatentDiffusion, captions: Sequence[str], steps: int, guidance: float, first: int) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1] of captions, with the seeds from `first` on."""
    request = SampleRequest(prompt=list(captions), steps=steps, guidance=guidance, seed=first, batch=64)
    return pipeline.sample(model, request).images.clamp(-1, 1).cpu()


def seconds_of(
    model: LatentDiffusion, captions: Sequence[str], steps: int, guidance: float, decoder: DecoderName
) -> float:
    """Processor time of an image, from its prompt to a PNG file's bytes; other programs on the machine do not count,
    further cores do."""
    request = SampleRequest(prompt=list(captions), steps=steps, guidance=guidance, batch=64, decoder=decoder)

    def made() -> list[bytes]:
        return [png_bytes(image) for image in to_uint8(pipeline.sample(model, request).images)]

    made()
    t_start = time.process_time()
    made()
    return (time.process_time() - t_start) / len(captions)


def measured(name: str, model: LatentDiffusion, steps: int, scales: Sequence[float], exam: Exam) -> Row:
    """The row of a model, at the guidance that is best on the captions to choose by."""

    def quality(scale: float) -> float:
        images = sampled(model, exam.chosen_by.captions, steps, scale, 100_000)
        return exam.chosen_by.quality(images, exam.network)

    guidance = max(scales, key=quality)
    half = exam.reported
    images = sampled(model, half.captions, steps, guidance, 0)
    seconds = seconds_of(model, half.captions[:64], steps, guidance, "full")
    tiny = None if model.tiny is None else seconds_of(model, half.captions[:64], steps, guidance, "tiny")
    rates = {} if half.prompts is None else score_row(name, half.prompts, images).rates
    calls = steps * (1 if second_stage(model).config.student is not None else 2)
    distance = half.distance(images, exam.network)
    return Row(name, steps, calls, guidance, rates.get("facts"), rates.get("prompts"), distance, seconds, tiny)


def rows_of(options: argparse.Namespace, exam: Exam, say: Callable[[str], None]) -> list[Row]:
    """All rows; those in FOLDER/rows.jsonl are not measured again."""
    path = options.out / "rows.jsonl"
    rows = [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row.model, row.steps) for row in rows}
    for folder, counts in [(options.teacher, [TEACHER_STEPS]), *((one, options.steps) for one in options.students)]:
        missing = [steps for steps in counts if (folder.name, steps) not in done]
        model = load(folder).for_inference(dtype_of("auto")) if missing else None
        for steps in missing:
            assert model is not None
            row = measured(folder.name, model, steps, options.scales, exam)
            with path.open("a", encoding="utf-8") as log:
                log.write(json.dumps(asdict(row)) + "\n")
            rows.append(row)
            facts = "" if row.facts is None else f"{row.facts:.1%} of facts, "
            say(f"{row.model}, {row.steps} steps, guidance {row.guidance:g}: {facts}kernel distance {row.kernel:.3f}")
    return rows


def share(value: float | None, of: float | None = 1.0) -> str:
    """A percentage for the table."""
    return "–" if value is None or not of else f"{value / of:.1%}"


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown; shares of facts also relative to the first row, the teacher."""
    lines = [
        "| | steps | calls | guidance | facts | of the teacher's | every fact | KD | ms an image | tiny |",
        "|---|" + "---|" * 9,
    ]
    for row in rows:
        lines.append(
            f"| {row.model} | {row.steps} | {row.calls} | {row.guidance:g} | {share(row.facts)} | "
            f"{share(row.facts, rows[0].facts)} | {share(row.prompts)} | {row.kernel:.3f} | {1000 * row.seconds:.1f} | "
            + ("–" if row.tiny_seconds is None else f"{1000 * row.tiny_seconds:.1f}")
            + " |"
        )
    return "\n".join(lines) + "\n"


def sheet(options: argparse.Namespace, rows: Sequence[Row], exam: Exam) -> Iterator[Tensor]:
    """A row of images of the first captions reported for each row of the table, none chosen."""
    folders = {folder.name: folder for folder in (options.teacher, *options.students)}
    captions = exam.reported.captions[:SHOWN]
    for row in rows:
        yield sampled(load(folders[row.model]), captions, row.steps, row.guidance, 0)


def run(options: argparse.Namespace, say: Callable[[str], None] = print) -> None:
    """Measures what is not measured yet, and writes the results."""
    options.out.mkdir(parents=True, exist_ok=True)
    exam = exam_of(options.teacher, options.images, options.features)
    rows = rows_of(options, exam, say)
    about = {"images": options.images, "scales": options.scales, "machine": asdict(describe(torch.device("cpu")))}
    results: dict[str, Any] = {**about, "rows": [asdict(row) for row in rows]}
    (options.out / "few-steps.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "few-steps.md").write_text(table(rows))
    images = torch.cat(list(sheet(options, rows, exam)))
    save_png(options.out / "few-steps.png", image_grid(to_uint8(images), columns=SHOWN), scale=2)
    say(table(rows))


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.few_steps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("teacher", type=Path)
    parser.add_argument("students", type=Path, nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=256, help="of every row")
    numbers = lambda kind: lambda text: [kind(value) for value in text.split(",")]  # noqa: E731
    parser.add_argument("--steps", type=numbers(int), default=list(STEPS), help="of the students")
    parser.add_argument("--scales", type=numbers(float), default=list(SCALES), help="guidance to choose from")
    parser.add_argument("--features", default="efficientnet-lite0", help="the network of the kernel distance")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    use_all_cores()
    try:
        run(parsed())
    except UserError as error:
        raise SystemExit(f"few_steps: {error}") from None
