"""`sfumato invert`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.options import BatchOption, DeviceOption, ModelArgument, PrecisionOption, SizeOption
from sfumato.plain_json import to_json

if TYPE_CHECKING:
    from torch import Tensor


def invert(
    model: ModelArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images to find the noise of.")],
    out: Annotated[Path, typer.Option("--out", help="The folder for noise.safetensors, grid.png and metrics.jsonl.")],
    text: Annotated[
        str | None, typer.Option("--text", help="What the images show, for a model conditioned on text.")
    ] = None,
    label: Annotated[str | None, typer.Option("--label", help="Their class, for a model conditioned on one.")] = None,
    redraw: Annotated[
        str | None, typer.Option("--redraw", metavar="PROMPT", help="Also draw the noise again with another text.")
    ] = None,
    guidance: Annotated[float, typer.Option("--guidance", help="Of --redraw.")] = 3.0,
    steps: Annotated[int, typer.Option("--steps", help="Of DDIM, there and back.")] = 50,
    refinements: Annotated[
        int, typer.Option("--refinements", help="Fixed-point iterations of each step; 0 is plain DDIM inversion.")
    ] = 1,
    size: SizeOption = None,
    batch: BatchOption = 16,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Find the noise that an image is drawn from.

    Draws it again by DDIM and measures what was lost: PSNR of the first stage alone, and of the way there and back.
    """
    import torch

    from sfumato.checkpoint import save_tensors, write_text
    from sfumato.cli.options import (
        at_least,
        chosen_autocast,
        chosen_device,
        enough_memory,
        made_fast,
        notes,
        out_folder,
    )
    from sfumato.cli.options import parse_size as parsed
    from sfumato.cli.progress import bars
    from sfumato.evaluation.image_quality import psnr
    from sfumato.images import image_grid, save_png
    from sfumato.model_folder import load
    from sfumato.outputs import one_set_of_files
    from sfumato.pipeline import pipeline
    from sfumato.pipeline.request import SampleRequest
    from sfumato.tasks.inversion import INVERSION_GRID, find_noise
    from sfumato.training.workers import use_all_cores

    at_least("--refinements", refinements, 0)
    frame = parsed(size)
    options = SampleRequest(
        sampler="ddim", grid=INVERSION_GRID, steps=steps, guidance=guidance, size=frame, batch=batch, count=len(images)
    )
    use_all_cores()
    place = chosen_device(device)
    computing = chosen_autocast(place, precision)
    folder = out_folder(out)
    loaded = load(model, place)
    originals = _read(images, frame or loaded.config.image_size)
    with made_fast(loaded, computing), enough_memory(min(batch, len(images))), notes(), bars() as (_, progress):
        found = find_noise(loaded, originals, text, label, steps, refinements, batch, progress("inverting"))
        again = None
        if redraw is not None:
            again = pipeline.sample(loaded, replace(options, prompt=redraw, noise=found.noise, size=None)).images
    columns = [originals, *(c.clamp(-1, 1).cpu() for c in (found.reconstructed, found.redrawn, again) if c is not None)]
    scores = {
        "autoencoder": psnr(columns[1], originals),
        "inversion": psnr(columns[2], columns[1]),
        "both": psnr(columns[2], originals),
    }
    lines = [
        to_json({"file": str(path), **{f"psnr {name}": round(v[i].item(), 3) for name, v in scores.items()}})
        for i, path in enumerate(images)
    ]
    sheet = torch.stack(columns, 1).flatten(0, 1)
    with one_set_of_files(folder):
        write_text(folder / "metrics.jsonl", "".join(line + "\n" for line in lines))
        save_tensors(folder / "noise.safetensors", {"noise": found.noise.cpu().contiguous()})
        save_png(folder / "grid.png", image_grid(sheet, len(columns)))
    means = {name: v.mean().item() for name, v in scores.items()}
    typer.echo(
        f"mean PSNR: {means['autoencoder']:.2f} dB by the first stage alone, {means['both']:.2f} dB there and back; "
        f"the inversion itself {means['inversion']:.2f} dB"
    )
    last = ", redrawn with the other text" if again is not None else ""
    typer.echo(f"sheet (original, first stage, there and back{last}): {folder / 'grid.png'}")


def _read(paths: list[Path], size: tuple[int, int]) -> "Tensor":
    """(N, 3, H, W) in [-1, 1]. Raises UserError for a file that cannot be read."""
    import torch

    from sfumato.cli.sampling_options import image_of

    return torch.stack([image_of(path, size, "image") for path in paths])
