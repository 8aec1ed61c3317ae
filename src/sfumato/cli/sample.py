"""`sfumato sample`."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.options import BatchOption, DeviceOption, ModelArgument, PrecisionOption, SizeOption
from sfumato.cli.task_options import MEMORY, OVERLAP, MemoryOption, OverlapOption, WindowOption

if TYPE_CHECKING:
    from sfumato.model import LatentDiffusion
    from sfumato.sampling.table import SamplerConfig

ON_SHEET = 256


@dataclass(frozen=True)
class Wish:
    """One picture to draw."""

    text: str | None
    label: str | None
    seed: int


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
    steps: Annotated[int, typer.Option("--steps", help="Steps of the sampler.")] = 20,
    sampler: Annotated[str, typer.Option("--sampler", help="`sfumato samplers` lists them.")] = "dpmpp-2m",
    eta: Annotated[
        float | None, typer.Option("--eta", help="Fresh noise of ddim (0 to 1) and dpmpp-2m-sde (from 0).")
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option("--grid", help="Spacing of the steps: leading, trailing, linspace, quadratic, karras, log-snr."),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", help="How strongly to follow the prompt; 1 is off [default: 3].")
    ] = None,
    interval: Annotated[
        str, typer.Option("--interval", metavar="LO,HI", help="Times in [0, 1] (1: noisiest) at which guidance acts.")
    ] = "0,1",
    negative: Annotated[str | None, typer.Option("--negative", help="A text to lead away from.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the first picture; the next one takes the next number.")] = 0,
    size: SizeOption = None,
    window: WindowOption = "0",
    overlap: OverlapOption = OVERLAP,
    memory: MemoryOption = MEMORY,
    batch: BatchOption = 16,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Draw pictures from a trained model.

    Writes OUT/0000.png ..., each with its prompt, seed and settings inside, and OUT/grid.png.
    """
    from sfumato.cli.options import (
        at_least,
        chosen_autocast,
        chosen_device,
        enough_memory,
        made_fast,
        out_folder,
        parse_size,
    )
    from sfumato.cli.task_options import parse_memory, parse_window
    from sfumato.errors import UserError
    from sfumato.model import load
    from sfumato.sampling.grids import GridConfig
    from sfumato.sampling.table import default_grid
    from sfumato.training.workers import use_all_cores

    texts = [*(prompts or ()), *_read_prompts(prompts_file)] or None
    wishes = wanted(texts, label, count, seed)
    at_least("--steps", steps, 1)
    at_least("--batch", batch, 1)
    config = configured(sampler, eta)
    times = _interval(interval)
    frame = parse_size(size)
    use_all_cores()
    place = chosen_device(device)
    computing = chosen_autocast(place, precision)
    folder = out_folder(out)
    loaded = load(model, place)
    if loaded.second is None:
        raise UserError(f"{str(model)!r} is an autoencoder only: train a diffusion model on it to draw samples")
    scale = loaded.guidance_scale(guidance, texts is not None or label is not None or negative is not None)
    takes_text = loaded.second.conditioner is not None and "text" in loaded.second.conditioner.reads
    if negative is not None and takes_text and scale == 1:
        raise UserError("--negative works through guidance, which is off: give --guidance above 1, such as 3")
    spacing = default_grid(config, loaded.second.schedule) if grid is None else _grid(grid)
    facts: dict[str, Any] = {
        **_sampler_facts(config),
        "steps": steps,
        "grid": spacing.kind,
        "guidance": scale,
        **({"interval": interval} if scale != 1 and times != (0.0, 1.0) else {}),
        **({"negative": negative} if negative is not None else {}),
    }
    options: dict[str, Any] = {
        "steps": steps,
        "sampler": config,
        "grid": GridConfig(kind=spacing.kind),
        "guidance": scale,
        "interval": times,
        "negative": negative,
        "size": frame,
        "window": parse_window(window),
        "overlap": overlap,
        "memory": parse_memory(memory),
    }
    with made_fast(loaded, computing), enough_memory(batch):
        draw(loaded, wishes, folder, batch, options, facts)


def draw(
    model: "LatentDiffusion",
    wishes: Sequence[Wish],
    folder: Path,
    batch: int,
    options: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    """Draws the pictures batch by batch, each batch on disk before the next begins, and says where they are.

    Args:
        model: the model.
        wishes: what to draw.
        folder: where to; pictures that are there already stay.
        batch: pictures at once.
        options: keyword arguments of `LatentDiffusion.sample_tensor`.
        facts: what is written into every picture beside its prompt, label and seed.
    """
    import torch

    from sfumato import __version__, pictures
    from sfumato.cli.options import columns_of
    from sfumato.cli.progress import counting

    first = next_number(folder)
    about = {**facts, "model": model.digest, "sfumato": __version__}
    sheet: list[torch.Tensor] = []
    batches = [wishes[i : i + batch] for i in range(0, len(wishes), batch)]
    t_start = time.monotonic()
    number = first
    with counting("sampling", options["steps"] * len(batches), "steps") as advance:
        for part in batches:
            images = model.sample_tensor(
                None if part[0].text is None else [wish.text or "" for wish in part],
                label=None if part[0].label is None else [wish.label or "" for wish in part],
                n=len(part),
                seeds=[wish.seed for wish in part],
                batch=batch,
                callback=lambda step: advance(1),
                **options,
            )
            if first and number == first:
                typer.echo(f"{folder} already holds pictures: numbering goes on at {first:04d}", err=True)
            for wish, pixels in zip(part, pictures.to_uint8(images).cpu(), strict=True):
                own = {"prompt": wish.text, "label": wish.label, "seed": wish.seed}
                known = {name: value for name, value in own.items() if value is not None}
                pictures.save_png(folder / f"{number:04d}.png", pixels, {**known, **about})
                number += 1
                if len(sheet) < ON_SHEET:
                    sheet.append(pixels)
    elapsed = time.monotonic() - t_start
    name = folder / ("grid.png" if first == 0 else f"grid-{first:04d}.png")
    pictures.save_png(name, pictures.grid(torch.stack(sheet), columns_of(len(sheet))), about)
    told = f"{first:04d}.png" + (f" to {number - 1:04d}.png" if number - 1 > first else "")
    plural = "s" if len(wishes) > 1 else ""
    rate = f"{len(wishes)} picture{plural} in {elapsed:.1f} s, {len(wishes) / elapsed:.1f} a second"
    typer.echo(f"{rate}: {folder}/{told}; sheet: {name}")


def wanted(texts: Sequence[str] | None, labels: Sequence[str] | None, count: int | None, seed: int) -> list[Wish]:
    """`count` pictures of each prompt or label, with seeds from `seed` on.

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
        wishes += [Wish(text, label, seed + row * each + i) for i in range(each)]
    return wishes


def configured(name: str, eta: float | None) -> "SamplerConfig":
    """The sampler of the options. Raises UserError for an unknown one, or an eta it has not."""
    from sfumato.errors import UserError
    from sfumato.model import sampler_named
    from sfumato.sampling.table import SAMPLERS

    if eta is None or name not in SAMPLERS:
        return sampler_named(name)
    if "eta" not in SAMPLERS[name].config.model_fields:
        having = [other for other, facts in SAMPLERS.items() if "eta" in facts.config.model_fields]
        raise UserError(f"--eta does not fit the sampler {name}: it belongs to {' and '.join(having)}")
    try:
        return sampler_named(name, eta=eta)
    except UserError:
        range_of = "between 0 (deterministic) and 1 (as ddpm)" if name == "ddim" else "from 0 (deterministic) on"
        raise UserError(f"--eta is {eta:g}: {name} takes values {range_of}") from None


def next_number(folder: Path) -> int:
    """One more than the highest number of a picture in the folder, 0 where there is none."""
    found = (re.fullmatch(r"(\d{4,})\.png", path.name) for path in folder.iterdir())
    return max((int(match.group(1)) + 1 for match in found if match), default=0)


def _sampler_facts(config: "SamplerConfig") -> dict[str, Any]:
    """The sampler, and those of its settings that are not the default."""
    changed = {name: value for name, value in config.model_dump(exclude_defaults=True).items() if name != "kind"}
    return {"sampler": config.kind, **changed}


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


def _interval(text: str) -> tuple[float, float]:
    from sfumato.errors import UserError

    try:
        low, high = (float(value) for value in text.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low <= high <= 1:
        raise UserError(f"--interval {text!r} is not LO,HI with 0 <= LO <= HI <= 1, such as 0.2,0.8")
    return low, high


def _grid(name: str) -> Any:
    from typing import get_args

    from sfumato.errors import UserError
    from sfumato.sampling.grids import GridConfig, GridKind

    kinds = [kind for kind in get_args(GridKind) if kind != "times"]
    if name not in kinds:
        raise UserError(f"--grid {name!r} is not one of {', '.join(kinds)}")
    return GridConfig(kind=name)
