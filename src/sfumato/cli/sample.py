"""`sfumato sample`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sfumato.cli.classifying import ClassifierOption, ClassifierScaleOption, ClassOption
from sfumato.cli.options import BatchOption, DeviceOption, ModelArgument, PrecisionOption, SizeOption
from sfumato.cli.sampling_options import (
    EtaOption,
    GridOption,
    GuidanceOption,
    IntervalOption,
    SamplerOption,
    ShiftOption,
    StepsOption,
    TimesOption,
)
from sfumato.cli.task_options import MEMORY, OVERLAP, MemoryOption, OverlapOption, WindowOption

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.model import LatentDiffusion
    from sfumato.pipeline.plan import Plan
    from sfumato.pipeline.request import DecoderName, SampleRequest
    from sfumato.sampling.loop import Step

ON_SHEET = 256
ON_STRIP = 8
ON_PREVIEW = 16


@dataclass(frozen=True)
class Asked:
    """What is sampled, a row for each image."""

    prompts: list[str] | None
    labels: list[str] | None
    seeds: list[int]


@dataclass(frozen=True)
class Shown:
    """What is shown of the way: images of `strip` steps in a row each, and a preview every so many steps."""

    strip: int = 0
    preview_every: int = 0


def sample(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", help="The folder for the images; numbering goes on in one in use.")],
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Texts; none draws without a condition.")
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="A text file with a prompt on each line.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", help="A class by name or number; may be given several times.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("-n", "--count", help="Images of each prompt or label [default: 4, or 1 of several prompts]."),
    ] = None,
    steps: StepsOption = None,
    sampler: SamplerOption = "auto",
    eta: EtaOption = None,
    grid: GridOption = None,
    shift: ShiftOption = None,
    times: TimesOption = None,
    guidance: GuidanceOption = None,
    interval: IntervalOption = "0,1",
    rescale: Annotated[
        float, typer.Option("--rescale", help="Bring back the contrast that strong guidance inflates: 0 (off) to 1.")
    ] = 0.0,
    apg: Annotated[
        str | None,
        typer.Option("--apg", metavar="SETTINGS", help="Adaptive projected guidance: on, or limit=7.5,momentum=-0.5."),
    ] = None,
    negative: Annotated[str | None, typer.Option("--negative", help="A text to guide away from.")] = None,
    class_: ClassOption = None,
    classifier: ClassifierOption = None,
    classifier_scale: ClassifierScaleOption = 1.0,
    autoguide: Annotated[
        Path | None,
        typer.Option(
            "--autoguide",
            metavar="MODEL",
            help="A weaker version to guide away from: a model, or a run with snapshots.",
        ),
    ] = None,
    autoguide_scale: Annotated[
        float, typer.Option("--autoguide-scale", help="How strongly to guide away from it; 1 is off.")
    ] = 2.0,
    steer: Annotated[
        list[str] | None,
        typer.Option(
            "--steer",
            metavar="WISH",
            help="Make images like another: low-res=FILE, colour=FILE or #rrggbb, features=FILE. May be repeated.",
        ),
    ] = None,
    steer_scale: Annotated[
        float,
        typer.Option("--steer-scale", help="How far each step goes towards what --steer wishes; 1 is all the way."),
    ] = 1.0,
    reuse: Annotated[
        int,
        typer.Option(
            "--reuse",
            metavar="N",
            help="Approximate: only every Nth network call is whole, the others reuse its deep features; 1 is off.",
        ),
    ] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Of the first image; the next one takes the next number.")] = 0,
    same_seed: Annotated[
        bool, typer.Option("--same-seed", help="One seed for all images, to compare prompts or scales.")
    ] = False,
    strip: Annotated[
        int, typer.Option("--strip", metavar="K", help="Also write the expected image at K steps of the way.")
    ] = 0,
    preview_every: Annotated[
        int, typer.Option("--preview-every", metavar="K", help="Show OUT/preview.png every K steps while drawing.")
    ] = 0,
    size: SizeOption = None,
    window: WindowOption = "0",
    overlap: OverlapOption = OVERLAP,
    memory: MemoryOption = MEMORY,
    decoder: Annotated[
        Literal["full", "tiny"],
        typer.Option("--decoder", help="tiny: the quick one for previews that `sfumato distill-decoder` makes."),
    ] = "full",
    batch: BatchOption = 16,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Draw images from a trained model.

    Writes OUT/0000.png ..., each with its prompt, seed and settings inside, and OUT/grid.png.
    """
    from sfumato.cli import sampling_options as given
    from sfumato.cli.classifying import led_by
    from sfumato.cli.options import at_least, chosen_autocast, chosen_device, enough_memory, made_fast, out_folder
    from sfumato.cli.options import parse_size as parsed
    from sfumato.cli.task_options import parse_memory, parse_window
    from sfumato.conditioning.sources import fetching
    from sfumato.errors import UserError
    from sfumato.model_folder import load
    from sfumato.pipeline.choices import check_names
    from sfumato.pipeline.options import Range, check_number
    from sfumato.pipeline.plan import plan
    from sfumato.pipeline.request import SCALE, SampleRequest
    from sfumato.training.workers import use_all_cores

    texts = [*(prompts or ()), *_read_prompts(prompts_file)] or None
    asked = wanted(texts, label, count, seed, same_seed)
    shown = Shown(at_least("--strip", strip, 0), at_least("--preview-every", preview_every, 0))
    request = SampleRequest(
        prompt=asked.prompts,
        label=asked.labels,
        count=len(asked.seeds),
        seeds=asked.seeds,
        steps=steps,
        sampler=sampler,
        eta=eta,
        grid=grid,
        shift=shift,
        times=None if times is None else given.numbers_of("--times", times),
        guidance=given.guidance_of(guidance),
        interval=given.interval_of(interval),
        rescale=rescale,
        projection=given.projection_of(apg),
        negative=negative,
        autoguide_scale=autoguide_scale,
        reuse=reuse,
        size=parsed(size),
        window=parse_window(window),
        overlap=overlap,
        memory=parse_memory(memory),
        decoder=decoder,
        batch=batch,
    )
    check_names(request)
    check_number("--classifier-scale", classifier_scale, SCALE)
    check_number("--steer-scale", steer_scale, Range(0.0, 1000.0, above=True))
    use_all_cores()
    place = chosen_device(device)
    computing = chosen_autocast(place, precision)
    with fetching(typer.echo):
        loaded = load(model, place)
    if loaded.second is None:
        raise UserError(f"{str(model)!r} is an autoencoder only: train a diffusion model on it to sample images")
    weaker = given.weaker_of(autoguide, place)
    image_guidance = given.steering_of(steer or (), steer_scale, request.size or loaded.config.image_size)
    classifier_guidance, facts = led_by(loaded, classifier, class_, classifier_scale)
    request = replace(request, autoguide=weaker, image_guidance=image_guidance, classifier=classifier_guidance)
    planned = plan(loaded, request)
    for note in planned.notes:
        typer.echo(f"warning: {note}", err=True)
    if told := given.said(planned):
        typer.echo(told)
    if steer:
        facts = {**facts, "steer": "; ".join(steer)}
    folder = out_folder(out)
    fast = computing if image_guidance is not None else made_fast(loaded, computing)
    if weaker is not None and image_guidance is None:
        made_fast(weaker, computing)
    with fast, enough_memory(min(batch, planned.count)):
        draw(loaded, request, planned, folder, facts, shown)


def draw(
    model: "LatentDiffusion",
    request: "SampleRequest",
    planned: "Plan",
    folder: Path,
    facts: dict[str, Any],
    shown: Shown = Shown(),
) -> None:
    """Samples the images batch by batch, each batch on disk before the next begins, and says where they are.

    Args:
        model: the model.
        request: what to sample.
        planned: the plan of the request.
        folder: where to; images that are there already stay.
        facts: what is written into every image beside its record.
        shown: what else is shown of the way.
    """
    import torch

    from sfumato.cli.numbering import next_number, number_of, numbered, sheets
    from sfumato.cli.options import columns_of
    from sfumato.cli.progress import counting
    from sfumato.images import image_grid, save_first_free, to_uint8
    from sfumato.pipeline import pipeline
    from sfumato.pipeline.record import record_of

    first = next_number(folder)
    written: list[Path] = []
    record = record_of(model, request, planned)
    sheet: list[torch.Tensor] = []
    t_start = time.monotonic()
    with counting("sampling", planned.steps * -(-planned.count // request.batch), "steps") as advance:
        way = _Way(model, folder, shown, request.decoder, advance)
        for batch in pipeline.batches(model, replace(request, callback=way), planned):
            if first and not written:
                typer.echo(f"{folder} already holds images: numbering goes on at {first:04d}", err=True)
            before = len(written)
            for row, pixels in zip(batch.rows, to_uint8(batch.images).cpu(), strict=True):
                names = numbered(folder, number_of(written[-1]) + 1 if written else first)
                written.append(save_first_free(names, pixels, {**record.of(row), **facts}))
                if len(sheet) < ON_SHEET:
                    sheet.append(pixels)
            way.finish(number_of(written[before]))
    elapsed = time.monotonic() - t_start
    made = image_grid(torch.stack(sheet), columns_of(len(sheet)))
    name = save_first_free(sheets(folder, number_of(written[0])), made, {**record.shared(), **facts})
    told = written[0].name + (f" to {written[-1].name}" if len(written) > 1 else "")
    plural = "s" if planned.count > 1 else ""
    rate = f"{planned.count} image{plural} in {elapsed:.1f} s, {planned.count / elapsed:.1f} a second"
    typer.echo(f"{rate}: {folder}/{told}; sheet: {name}")


@dataclass
class _Way:
    """Watches the steps of a batch: moves the bar, keeps what the strip needs, shows previews.

    A preview is decoded by the model's tiny decoder where there is one, the strip as the images are.
    """

    model: "LatentDiffusion"
    folder: Path
    shown: Shown
    decoder: "DecoderName"
    advance: Callable[[int], None]
    passed: "list[Tensor]" = field(default_factory=list)

    def __call__(self, step: "Step") -> None:
        from sfumato.cli.options import columns_of
        from sfumato.images import image_grid, save_png, to_uint8

        self.advance(1)
        if self.shown.strip:
            self.passed.append(step.x0[:ON_STRIP].cpu())
        every = self.shown.preview_every
        if every and (step.index + 1) % every == 0 and step.index + 1 < step.total:
            quick: DecoderName = "full" if self.model.tiny is None else "tiny"
            images = to_uint8(self.model.decode(step.x0[:ON_PREVIEW], quick)).cpu()
            save_png(self.folder / "preview.png", image_grid(images, columns_of(len(images))))

    def finish(self, number: int) -> None:
        """Writes the strip under the number of the batch's first image; a preview has done its duty."""
        import torch

        from sfumato.cli.numbering import beside
        from sfumato.images import image_grid, save_first_free
        from sfumato.sampling.loop import equally_far

        if self.shown.strip:
            chosen = equally_far(self.passed, self.shown.strip)
            passed = [self.passed[place].to(self.model.device) for place in chosen]
            columns = [self.model.decode(x0, self.decoder).cpu() for x0 in passed]
            rows = torch.stack(columns, 1).flatten(0, 1)
            steps = ", ".join(str(place + 1) for place in chosen)
            names = beside(self.folder, "strip", number)
            save_first_free(names, image_grid(rows, len(chosen)), {"steps": steps})
            self.passed.clear()
        (self.folder / "preview.png").unlink(missing_ok=True)


def wanted(
    texts: Sequence[str] | None, labels: Sequence[str] | None, count: int | None, seed: int, same_seed: bool = False
) -> Asked:
    """`count` images of each prompt or label, with seeds from `seed` on, or all with that one.

    Raises UserError where prompts and labels are both several, and not as many, and for more images than a request may
    have.
    """
    from sfumato.errors import UserError
    from sfumato.pipeline.options import Range, check_number
    from sfumato.pipeline.request import MOST_IMAGES, SEED

    rows = max(len(texts or ()), len(labels or ()), 1)
    for name, values in (("prompts", texts), ("labels", labels)):
        if values is not None and len(values) not in (1, rows):
            raise UserError(f"{len(values)} {name} do not go with {rows} of the other: give one, or as many")
    check_number("-n", count, Range(1, MOST_IMAGES // rows, whole=True))
    check_number("--seed", seed, SEED)
    each = count if count is not None else 4 if rows == 1 else 1
    check_number("the last image's seed", seed + rows * each - 1, SEED)
    return Asked(
        None if texts is None else [texts[row % len(texts)] for row in range(rows) for _ in range(each)],
        None if labels is None else [labels[row % len(labels)] for row in range(rows) for _ in range(each)],
        [seed if same_seed else seed + i for i in range(rows * each)],
    )


def _read_prompts(path: Path | None) -> list[str]:
    from sfumato.data.textfile import LARGEST_CAPTION, lines_of, read_text
    from sfumato.errors import UserError

    if path is None:
        return []
    name = f"--prompts {str(path)!r}"
    lines = [line.strip() for line in lines_of(read_text(path, None, LARGEST_CAPTION, "save it as UTF-8", name))]
    if not any(lines):
        raise UserError(f"{name} holds no prompt: write one on each line")
    return [line for line in lines if line]
