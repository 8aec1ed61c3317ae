"""Students beside their teacher: facts, kernel distance and time at one to eight steps, and images of equal seeds.

    python -m benchmarks.few_steps TEACHER STUDENT... --out FOLDER

The teacher is a run on the toy world, whose reader finds the facts of held-out captions. Guidance is chosen for every
row by the share of facts on captions that are not reported. FOLDER/few-steps.json, few-steps.md and few-steps.png are
the results; every row is kept in FOLDER/rows.jsonl, and a second run goes on from there.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.tasks.given import run_of
from sfumato import load
from sfumato.data.toyworld.dataset import ToyWorldConfig
from sfumato.data.toyworld.facts import Prompt
from sfumato.engine.precision import dtype_of
from sfumato.errors import UserError
from sfumato.evaluation.features import FeatureNetwork
from sfumato.evaluation.kernel import squared_mmd
from sfumato.evaluation.table import load_network
from sfumato.images import image_grid, save_png, to_uint8
from sfumato.model import LatentDiffusion
from sfumato.pipeline import pipeline
from sfumato.pipeline.parts import second_stage
from sfumato.pipeline.request import DecoderName, SampleRequest
from sfumato.report.machine import describe
from sfumato.report.measure import PromptSet, build_prompts, score_row
from sfumato.training.workers import use_all_cores

SCALES = (1.5, 2.0, 3.0, 4.5)
STEPS = (1, 2, 4, 8)
TEACHER_STEPS = 20
SHOWN = 8


@dataclass(frozen=True)
class Row:
    """A model at a number of steps: shares of true facts and of perfect prompts, kernel distance, processor seconds an
    image from prompt to pixels, and those with the tiny decoder, None where the model has none."""

    model: str
    steps: int
    calls: int
    guidance: float
    facts: float
    prompts: float
    kernel: float
    seconds: float
    tiny_seconds: float | None = None


@dataclass(frozen=True)
class Exam:
    """Captions to choose guidance by, captions to report, and features (N, D) of the latter's scenes."""

    chosen_by: Sequence[Prompt]
    reported: Sequence[Prompt]
    real: Tensor
    network: FeatureNetwork


def exam_of(teacher: Path, count: int, features: str) -> Exam:
    """Held-out scenes of the toy world that the teacher's run was trained on. Raises UserError for another run."""
    known = (run_of(teacher, None) or {}).get("data", {})
    if known.get("kind") != "toy":
        raise UserError("the teacher is no run on the toy world: its facts cannot be read")
    prompt_set: PromptSet = build_prompts(ToyWorldConfig.model_validate(known), 2 * count)
    network = load_network(features)
    real = torch.cat([network(part).pooled for part in prompt_set.images[count:].split(64)])
    return Exam(prompt_set.prompts[:count], prompt_set.prompts[count:], real, network)


def sampled(model: LatentDiffusion, captions: Sequence[str], steps: int, guidance: float, first: int) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1] of captions, with the seeds from `first` on."""
    request = SampleRequest(prompt=list(captions), steps=steps, guidance=guidance, seed=first, batch=64)
    return pipeline.sample(model, request).images.clamp(-1, 1).cpu()


def seconds_of(
    model: LatentDiffusion, captions: Sequence[str], steps: int, guidance: float, decoder: DecoderName
) -> float:
    """Processor time of an image; other programs on the machine do not count, further cores do."""
    request = SampleRequest(prompt=list(captions), steps=steps, guidance=guidance, batch=64, decoder=decoder)
    pipeline.sample(model, request)
    t_start = time.process_time()
    pipeline.sample(model, request)
    return (time.process_time() - t_start) / len(captions)


def measured(name: str, model: LatentDiffusion, steps: int, scales: Sequence[float], exam: Exam) -> Row:
    """The row of a model, at the guidance that is best on the captions to choose by."""

    def facts(scale: float) -> float:
        images = sampled(model, [prompt.caption for prompt in exam.chosen_by], steps, scale, 100_000)
        return score_row(name, exam.chosen_by, images).rates["facts"]

    guidance = max(scales, key=facts)
    captions = [prompt.caption for prompt in exam.reported]
    images = sampled(model, captions, steps, guidance, 0)
    seconds = seconds_of(model, captions[:64], steps, guidance, "full")
    tiny = None if model.tiny is None else seconds_of(model, captions[:64], steps, guidance, "tiny")
    rates = score_row(name, exam.reported, images).rates
    features = torch.cat([exam.network(part).pooled for part in images.split(64)])
    calls = steps * (1 if second_stage(model).config.student is not None else 2)
    distance = squared_mmd(features, exam.real)
    return Row(name, steps, calls, guidance, rates["facts"], rates["prompts"], distance, seconds, tiny)


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
            say(f"{row.model}, {row.steps} steps, guidance {row.guidance:g}: {row.facts:.1%} of facts")
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown; shares of facts also relative to the first row, the teacher."""
    lines = [
        "| | steps | calls | guidance | facts | of the teacher's | every fact | KD | ms an image | tiny |",
        "|---|" + "---|" * 9,
    ]
    for row in rows:
        lines.append(
            f"| {row.model} | {row.steps} | {row.calls} | {row.guidance:g} | {row.facts:.1%} | "
            f"{row.facts / rows[0].facts:.1%} | {row.prompts:.1%} | {row.kernel:.3f} | {1000 * row.seconds:.1f} | "
            + ("–" if row.tiny_seconds is None else f"{1000 * row.tiny_seconds:.1f}")
            + " |"
        )
    return "\n".join(lines) + "\n"


def sheet(options: argparse.Namespace, rows: Sequence[Row], exam: Exam) -> Iterator[Tensor]:
    """A row of images of the first captions reported for each row of the table, none chosen."""
    folders = {folder.name: folder for folder in (options.teacher, *options.students)}
    captions = [prompt.caption for prompt in exam.reported[:SHOWN]]
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
