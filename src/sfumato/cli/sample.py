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

    from sfumato.drawing import DecoderName, Drawing
    from sfumato.model import LatentDiffusion
    from sfumato.sampling.grids import GridConfig
    from sfumato.sampling.loop import Step

ON_SHEET = 256
ON_STRIP = 8
ON_PREVIEW = 16


@dataclass(frozen=True)
class Wish:
    """One picture to draw."""

    text: str | None
    label: str | None
    seed: int


@dataclass(frozen=True)
class Shown:
    """What is shown of the way: pictures of `strip` steps in a row each, and a preview every so many steps."""

    strip: int = 0
    preview_every: int = 0


def sample(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", help="The folder for the pictures; numbering goes on in one in use.")],
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
        typer.Option("-n", "--count", help="Pictures of each prompt or label [default: 4, or 1 of several prompts]."),
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
    negative: Annotated[str | None, typer.Option("--negative", help="A text to lead away from.")] = None,
    class_: ClassOption = None,
    classifier: ClassifierOption = None,
    classifier_scale: ClassifierScaleOption = 1.0,
    autoguide: Annotated[
        Path | None,
        typer.Option(
            "--autoguide", metavar="MODEL", help="A weaker version to lead away from: a model, or a run with snapshots."
        ),
    ] = None,
    autoguide_scale: Annotated[
        float, typer.Option("--autoguide-scale", help="How strongly to lead away from it; 1 is off.")
    ] = 2.0,
    steer: Annotated[
        list[str] | None,
        typer.Option(
            "--steer",
            metavar="WISH",
            help="Make pictures like another: low-res=FILE, colour=FILE or #rrggbb, features=FILE. May be repeated.",
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
    seed: Annotated[int, typer.Option("--seed", help="Of the first picture; the next one takes the next number.")] = 0,
    same_seed: Annotated[
        bool, typer.Option("--same-seed", help="One seed for all pictures, to compare prompts or scales.")
    ] = False,
    strip: Annotated[
        int, typer.Option("--strip", metavar="K", help="Also write the expected picture at K steps of the way.")
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
    """Draw pictures from a trained model.

    Writes OUT/0000.png ..., each with its prompt, seed and settings inside, and OUT/grid.png.
    """
    from sfumato.cli import sampling_options as given
    from sfumato.cli.classifying import led_by
    from sfumato.cli.options import at_least, chosen_autocast, chosen_device, enough_memory, made_fast, out_folder
    from sfumato.cli.options import parse_size as parsed
    from sfumato.cli.task_options import parse_memory, parse_window
    from sfumato.drawing import DEFAULT_STEPS, Drawing, plan
    from sfumato.errors import UserError
    from sfumato.model import load
    from sfumato.training.workers import use_all_cores

    texts = [*(prompts or ()), *_read_prompts(prompts_file)] or None
    wishes = wanted(texts, label, count, seed, same_seed)
    shown = Shown(at_least("--strip", strip, 0), at_least("--preview-every", preview_every, 0))
    at_least("--batch", batch, 1)
    if steps is not None:
        at_least("--steps", steps, 1)
    options = Drawing(
        steps=DEFAULT_STEPS if steps is None else steps,
        sampler=given.configured(sampler, eta),
        grid=given.grid_of(grid, shift),
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
    if times is not None and (grid is not None or shift is not None):
        raise UserError("--times says where the steps are: leave out --grid and --shift")
    use_all_cores()
    place = chosen_device(device)
    computing = chosen_autocast(place, precision)
    folder = out_folder(out)
    loaded = load(model, place)
    if loaded.second is None:
        raise UserError(f"{str(model)!r} is an autoencoder only: train a diffusion model on it to draw samples")
    if times is not None:
        listed = given.times_of(times, loaded.second.schedule, steps)
        options = replace(options, grid=listed, steps=len(listed.times or ()) - 1)
    elif grid is None and shift is not None:
        options = replace(options, grid=_shifted(loaded, options, wishes, shift))
    weaker = given.weaker_of(autoguide, place)
    steering = given.steering_of(steer or (), steer_scale, options.size or loaded.config.image_size)
    options = replace(options, autoguide=weaker, steer=steering)
    planned = plan(loaded, _of(wishes, options))
    takes_text = loaded.second.conditioner is not None and "text" in loaded.second.conditioner.reads
    if negative is not None and takes_text and set(planned.scales) == {1.0}:
        raise UserError("--negative works through guidance, which is off: give --guidance above 1, such as 3")
    wrap, led = led_by(loaded, classifier, class_, classifier_scale)
    if told := given.said(planned):
        typer.echo(told)
    facts = {
        **given.sampler_facts(planned),
        **_guidance_facts(options, planned.scales, autoguide, steer, steer_scale),
        **led,
        **({"reuse": reuse} if reuse > 1 else {}),
        **({"decoder": decoder} if decoder != "full" else {}),
    }
    fast = computing if steering is not None else made_fast(loaded, computing)
    if weaker is not None and steering is None:
        made_fast(weaker, computing)
    with fast, enough_memory(batch):
        draw(loaded, wishes, folder, replace(options, guidance=planned.scales, wrap=wrap), facts, planned.steps, shown)


def draw(
    model: "LatentDiffusion",
    wishes: Sequence[Wish],
    folder: Path,
    options: "Drawing",
    facts: dict[str, Any],
    steps: int,
    shown: Shown = Shown(),
) -> None:
    """Draws the pictures batch by batch, each batch on disk before the next begins, and says where they are.

    Args:
        model: the model.
        wishes: what to draw.
        folder: where to; pictures that are there already stay.
        options: how; its guidance has a scale for each wish.
        facts: what is written into every picture beside its prompt, label, seed and guidance.
        steps: of a batch, for the bar.
        shown: what else is shown of the way.
    """
    import torch

    from sfumato import __version__, pictures
    from sfumato.cli.numbering import next_number, number_of, numbered, sheets
    from sfumato.cli.options import columns_of
    from sfumato.cli.progress import counting

    first = next_number(folder)
    written: list[Path] = []
    about = {"model": model.digest, "sfumato": __version__}
    sheet: list[torch.Tensor] = []
    size = options.batch
    scales: Sequence[float] = options.guidance  # type: ignore[assignment]  # one each
    batches = [range(i, min(i + size, len(wishes))) for i in range(0, len(wishes), size)]
    t_start = time.monotonic()
    with counting("sampling", steps * len(batches), "steps") as advance:
        for rows in batches:
            part = [wishes[row] for row in rows]
            way = _Way(model, folder, shown, options.decoder, advance)
            drawn = _of(part, replace(options, guidance=[scales[row] for row in rows], callback=way))
            images = model.draw(drawn)
            if first and not written:
                typer.echo(f"{folder} already holds pictures: numbering goes on at {first:04d}", err=True)
            before = len(written)
            for row, pixels in zip(rows, pictures.to_uint8(images).cpu(), strict=True):
                own = {"prompt": wishes[row].text, "label": wishes[row].label, "seed": wishes[row].seed}
                known = {name: value for name, value in own.items() if value is not None}
                names = numbered(folder, number_of(written[-1]) + 1 if written else first)
                inside = {**known, **facts, "guidance": scales[row], **about}
                written.append(pictures.save_first_free(names, pixels, inside))
                if len(sheet) < ON_SHEET:
                    sheet.append(pixels)
            way.finish(number_of(written[before]))
    elapsed = time.monotonic() - t_start
    made = pictures.grid(torch.stack(sheet), columns_of(len(sheet)))
    name = pictures.save_first_free(sheets(folder, number_of(written[0])), made, {**facts, **about})
    told = written[0].name + (f" to {written[-1].name}" if len(written) > 1 else "")
    plural = "s" if len(wishes) > 1 else ""
    rate = f"{len(wishes)} picture{plural} in {elapsed:.1f} s, {len(wishes) / elapsed:.1f} a second"
    typer.echo(f"{rate}: {folder}/{told}; sheet: {name}")


@dataclass
class _Way:
    """Watches the steps of a batch: moves the bar, keeps what the strip needs, shows previews.

    A preview is decoded by the model's tiny decoder where there is one, the strip as the pictures are.
    """

    model: "LatentDiffusion"
    folder: Path
    shown: Shown
    decoder: "DecoderName"
    advance: Callable[[int], None]
    passed: "list[Tensor]" = field(default_factory=list)

    def __call__(self, step: "Step") -> None:
        from sfumato import pictures
        from sfumato.cli.options import columns_of

        self.advance(1)
        if self.shown.strip:
            self.passed.append(step.x0[:ON_STRIP].cpu())
        every = self.shown.preview_every
        if every and (step.index + 1) % every == 0 and step.index + 1 < step.total:
            quick: DecoderName = "full" if self.model.tiny is None else "tiny"
            images = pictures.to_uint8(self.model.decode(step.x0[:ON_PREVIEW], quick)).cpu()
            pictures.save_png(self.folder / "preview.png", pictures.grid(images, columns_of(len(images))))

    def finish(self, number: int) -> None:
        """Writes the strip under the number of the batch's first picture; a preview has done its duty."""
        import torch

        from sfumato import pictures
        from sfumato.cli.numbering import beside
        from sfumato.sampling.loop import equally_far

        if self.shown.strip:
            chosen = equally_far(self.passed, self.shown.strip)
            passed = [self.passed[place].to(self.model.device) for place in chosen]
            columns = [self.model.decode(x0, self.decoder).cpu() for x0 in passed]
            rows = torch.stack(columns, 1).flatten(0, 1)
            steps = ", ".join(str(place + 1) for place in chosen)
            names = beside(self.folder, "strip", number)
            pictures.save_first_free(names, pictures.grid(rows, len(chosen)), {"steps": steps})
        (self.folder / "preview.png").unlink(missing_ok=True)


def _of(wishes: Sequence[Wish], options: "Drawing") -> "Drawing":
    """The options, for these wishes."""
    return replace(
        options,
        text=None if wishes[0].text is None else [wish.text or "" for wish in wishes],
        label=None if wishes[0].label is None else [wish.label or "" for wish in wishes],
        n=len(wishes),
        seeds=[wish.seed for wish in wishes],
    )


def _shifted(model: "LatentDiffusion", options: "Drawing", wishes: Sequence[Wish], shift: float) -> "GridConfig":
    """The sampler's own grid, shifted."""
    from sfumato.config import parse
    from sfumato.drawing import plan
    from sfumato.sampling.grids import GridConfig

    grid = plan(model, _of(wishes, options)).choice.grid
    return parse({**grid.model_dump(), "shift": shift}, GridConfig, "--shift")


def _guidance_facts(
    options: "Drawing", scales: Sequence[float], autoguide: Path | None, steer: Sequence[str] | None, steer_scale: float
) -> dict[str, Any]:
    """What a picture tells of its guidance, where that is not the usual."""
    guided = any(scale != 1 for scale in scales) or autoguide is not None
    told: dict[str, Any] = {"guidance": scales[0]} if len(set(scales)) == 1 else {}
    if guided and options.interval != (0.0, 1.0):
        told["interval"] = f"{options.interval[0]:g},{options.interval[1]:g}"
    if guided and options.rescale:
        told["rescale"] = options.rescale
    if guided and options.projection is not None:
        p = options.projection
        told["apg"] = f"parallel={p.parallel:g},limit={p.limit:g},momentum={p.momentum:g}"
    if options.negative is not None:
        told["negative"] = options.negative
    if autoguide is not None and options.autoguide is not None:
        told |= {"autoguide": options.autoguide.digest, "autoguide scale": options.autoguide_scale}
    if steer:
        told |= {"steer": "; ".join(steer), "steer scale": steer_scale}
    return told


def wanted(
    texts: Sequence[str] | None, labels: Sequence[str] | None, count: int | None, seed: int, same_seed: bool = False
) -> list[Wish]:
    """`count` pictures of each prompt or label, with seeds from `seed` on, or all with that one.

    Raises UserError where prompts and labels are both several, and not as many.
    """
    from sfumato.cli.options import at_least
    from sfumato.errors import UserError

    rows = max(len(texts or ()), len(labels or ()), 1)
    for name, values in (("prompts", texts), ("labels", labels)):
        if values is not None and len(values) not in (1, rows):
            raise UserError(f"{len(values)} {name} do not go with {rows} of the other: give one, or as many")
    each = at_least("-n", count, 1) if count is not None else 4 if rows == 1 else 1
    if not -(2**63) <= seed < 2**63:
        raise UserError(f"--seed {seed} is too large: give a number of at most 18 digits")
    wishes = []
    for row in range(rows):
        text = None if texts is None else texts[row % len(texts)]
        label = None if labels is None else labels[row % len(labels)]
        wishes += [Wish(text, label, seed if same_seed else seed + row * each + i) for i in range(each)]
    return wishes


def _read_prompts(path: Path | None) -> list[str]:
    from sfumato.errors import UserError

    if path is None:
        return []
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"--prompts {str(path)!r} cannot be read: {reason}") from None
    if not any(lines):
        raise UserError(f"--prompts {str(path)!r} holds no prompt: write one on each line")
    return [line for line in lines if line]
