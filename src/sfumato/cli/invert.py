"""`sfumato invert`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sfumato.cli.flags import REQUIRED, command, flag
from sfumato.cli.forms import request_flags
from sfumato.cli.machine import ModelFlags
from sfumato.pipeline.options import Range
from sfumato.pipeline.request import DEFAULT_GUIDANCE, SCALE, STEPS
from sfumato.plain_json import to_json

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.tasks.inversion import Inversion


@dataclass(frozen=True, kw_only=True)
class InvertFlags(ModelFlags):
    """The options of `sfumato invert` beside those of a request."""

    images: list[Path] = flag(
        REQUIRED, "what to sample", "Images whose noise is computed.", metavar="IMAGE...", argument=True
    )
    out: Path = flag(REQUIRED, "output", "The folder for noise.safetensors, grid.png and metrics.jsonl.")
    text: str | None = flag(None, "what to sample", "What the images show, for a model conditioned on text.")
    label: str | None = flag(None, "what to sample", "Their class, for a model conditioned on one.")
    new_text: str | None = flag(
        None, "what to sample", "Also sample from the noise with another prompt.", metavar="PROMPT"
    )
    guidance: float = flag(DEFAULT_GUIDANCE, "guidance", "Guidance scale used with --new-text.", SCALE)
    steps: int = flag(50, "sampler", "Steps of DDIM, in each direction.", STEPS)
    refinements: int = flag(
        1,
        "sampler",
        "Fixed-point iterations of each step; 0 is plain DDIM inversion.",
        Range(0, 10_000, whole=True),
    )


@command(InvertFlags, request_flags("size", "batch"))
def invert(flags: InvertFlags, options: dict[str, Any]) -> None:
    """Find the noise from which DDIM samples an image.

    Samples from it again and measures the loss: PSNR of the autoencoder alone, and of inversion and sampling together.
    """
    from sfumato.cli.cost import say_cost
    from sfumato.cli.options import chosen_autocast, chosen_device, enough_memory, made_fast, notes, out_folder
    from sfumato.cli.progress import bars
    from sfumato.estimate.images import inversion
    from sfumato.model_folder import load
    from sfumato.pipeline import pipeline
    from sfumato.pipeline.request import SampleRequest
    from sfumato.tasks.inversion import INVERSION_GRID, find_noise
    from sfumato.training.workers import use_all_cores

    usual: dict[str, Any] = {
        "sampler": "ddim",
        "grid": INVERSION_GRID,
        "steps": flags.steps,
        "guidance": flags.guidance,
    }
    request = SampleRequest(**usual, **options, count=len(flags.images))
    use_all_cores()
    device = chosen_device(flags.device)
    computing = chosen_autocast(device, flags.precision)
    folder = out_folder(flags.out)
    model = load(flags.model, device)
    originals = _read(flags.images, request.size or model.config.image_size)
    batch = min(request.batch, len(flags.images))
    again = int(flags.new_text is not None)
    work = inversion(
        model,
        request,
        (originals.shape[-2], originals.shape[-1]),
        len(originals),
        flags.steps,
        flags.refinements,
        again,
    )
    say_cost(work, device, computing, "give a smaller --size, or fewer --steps")
    with made_fast(model, computing), enough_memory(batch), notes(), bars() as (_, progress):
        settings = (flags.text, flags.label, flags.steps, flags.refinements, request.batch)
        found = find_noise(model, originals, *settings, progress("inverting"))
        other = None
        if flags.new_text is not None:
            other = pipeline.sample(model, replace(request, prompt=flags.new_text, noise=found.noise, size=None)).images
    _write(folder, flags.images, originals, found, other)


def _write(folder: Path, paths: list[Path], originals: "Tensor", found: "Inversion", other: "Tensor | None") -> None:
    """Writes the noise, the measures and a sheet; `other`: the images of the other prompt."""
    import torch

    from sfumato.checkpoint import save_tensors, write_text
    from sfumato.evaluation.image_quality import psnr
    from sfumato.images import image_grid, save_png
    from sfumato.outputs import one_set_of_files

    tensors = (found.reconstructed, found.resampled, other)
    columns = [originals, *(images.clamp(-1, 1).cpu() for images in tensors if images is not None)]
    scores = {
        "autoencoder": psnr(columns[1], originals),
        "inversion": psnr(columns[2], columns[1]),
        "both": psnr(columns[2], originals),
    }
    lines = [
        to_json({"file": str(path), **{f"psnr {name}": round(v[i].item(), 3) for name, v in scores.items()}})
        for i, path in enumerate(paths)
    ]
    with one_set_of_files(folder):
        write_text(folder / "metrics.jsonl", "".join(line + "\n" for line in lines))
        save_tensors(folder / "noise.safetensors", {"noise": found.noise.cpu().contiguous()})
        save_png(folder / "grid.png", image_grid(torch.stack(columns, 1).flatten(0, 1), len(columns)))
    means = {name: v.mean().item() for name, v in scores.items()}
    typer.echo(
        f"mean PSNR: {means['autoencoder']:.2f} dB by the first stage alone, {means['both']:.2f} dB after "
        "inversion and sampling; "
        f"the inversion itself {means['inversion']:.2f} dB"
    )
    last = ", with the other prompt" if other is not None else ""
    typer.echo(f"sheet (original, first stage, inverted and sampled{last}): {folder / 'grid.png'}")


def _read(paths: list[Path], size: tuple[int, int]) -> "Tensor":
    """(N, 3, H, W) in [-1, 1]. Raises UserError for a file that cannot be read."""
    import torch

    from sfumato.cli.guides import image_of

    return torch.stack([image_of(path, size, "image") for path in paths])
