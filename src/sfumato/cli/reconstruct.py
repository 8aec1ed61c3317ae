"""`sfumato reconstruct`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sfumato.cli.flags import REQUIRED, command, flag
from sfumato.cli.forms import SIZE, request_flags
from sfumato.cli.machine import ModelFlags
from sfumato.counts import how_many
from sfumato.plain_json import to_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sfumato.cli.progress import Advance
    from sfumato.model import LatentDiffusion

ON_SHEET = 32
NAMED = 20


@dataclass(frozen=True)
class Fidelity:
    """How close an image came back; `ssim` is None where the image is smaller than the measure's window."""

    file: str
    height: int
    width: int
    psnr: float
    ssim: float | None


SIZE_OF_IMAGES = replace(SIZE, help="Height and width in pixels to resize and crop to; by default the images' own.")


@dataclass(frozen=True, kw_only=True)
class ReconstructFlags(ModelFlags):
    """The options of `sfumato reconstruct` beside those of a request."""

    images: Path = flag(REQUIRED, "what to sample", "An image, or a folder of images.", metavar="IMAGES", argument=True)
    out: Path = flag(REQUIRED, "output", "The folder for grid.png and metrics.jsonl.")
    background: str = flag("white", "what to sample", "Colour behind transparent images.")


@command(ReconstructFlags, request_flags("size", "memory", "batch", forms={"size": SIZE_OF_IMAGES}))
def reconstruct(flags: ReconstructFlags, options: dict[str, Any]) -> None:
    """Show what the autoencoder preserves of images.

    Images of any size are padded to a multiple of f and cropped back; --size resizes and crops them instead. Writes
    OUT/grid.png, originals beside reconstructions, and OUT/metrics.jsonl with PSNR and SSIM of every image.
    """
    from sfumato.cli.options import chosen_autocast, chosen_device, enough_memory, made_fast, out_folder
    from sfumato.data.reading import colour
    from sfumato.model_folder import load
    from sfumato.training.workers import use_all_cores

    size, batch, background = options["size"], options["batch"], colour(flags.background)
    use_all_cores()
    device = chosen_device(flags.device)
    computing = chosen_autocast(device, flags.precision)
    root, names = _listed(flags.images)
    folder = out_folder(flags.out)
    model = load(flags.model, device)
    if size is not None:
        model.latent_shape_of(size)
    unreadable: list[str] = []
    _say_cost(model, _sizes(root, names) if size is None else dict.fromkeys(names, size), device, computing)
    images = _read(root, names, size, background, unreadable)
    with made_fast(model, computing), enough_memory(min(batch, len(names))):
        results, sheet = measure(model, images, len(names), batch, options["memory"])
    _report(folder, results, sheet, unreadable, root)


def measure(
    model: "LatentDiffusion", images: "Iterator[tuple[str, Tensor]]", total: int, batch: int, memory: int
) -> "tuple[list[Fidelity], list[tuple[Tensor, Tensor]]]":
    """Fidelity of every named image (3, H, W) in [-1, 1], and the first pairs of original and reconstruction.

    Images of one size that follow each other are computed together; `memory` is in bytes.
    """
    from sfumato.cli.progress import counting

    results: list[Fidelity] = []
    sheet: list[tuple[Tensor, Tensor]] = []
    waiting: list[tuple[str, Tensor]] = []

    def flush(advance: "Advance") -> None:
        if not waiting:
            return
        for name, image, output in _pairs(model, waiting, memory):
            results.append(_fidelity(name, image, output))
            if len(sheet) < ON_SHEET:
                sheet.append((image, output))
        advance(len(waiting))
        waiting.clear()

    with counting("reconstructing", total, "img") as advance:
        for name, image in images:
            if waiting and (len(waiting) == batch or waiting[0][1].shape != image.shape):
                flush(advance)
            waiting.append((name, image))
        flush(advance)
    return results, sheet


def _pairs(
    model: "LatentDiffusion", named: "Sequence[tuple[str, Tensor]]", memory: int
) -> "Iterator[tuple[str, Tensor, Tensor]]":
    """Names, images and reconstructions in [-1, 1] of images of one size."""
    import torch

    from sfumato.images import pad_to_multiple

    images = torch.stack([image for _, image in named])
    H, W = images.shape[-2:]
    outputs = model.reconstruct(pad_to_multiple(images, model.autoencoder.factor), len(named), memory)[..., :H, :W]
    for (name, image), output in zip(named, outputs.float().clamp(-1, 1).cpu(), strict=True):
        yield name, image, output


def _fidelity(name: str, image: "Tensor", output: "Tensor") -> Fidelity:
    from sfumato.evaluation.image_quality import psnr, ssim

    H, W = image.shape[-2:]
    similar = ssim(output[None], image[None]).item() if min(H, W) >= 11 else None
    return Fidelity(name, H, W, psnr(output[None], image[None]).item(), similar)


def _listed(images: Path) -> tuple[Path, list[str]]:
    """The folder, and the images in it by their relative paths. Raises UserError if there is none."""
    from sfumato.data.listing import listing, notes_of
    from sfumato.data.opening import is_image
    from sfumato.errors import UserError

    if images.exists() and not images.is_dir():
        return images.parent, [images.name]
    if not images.is_dir():
        raise UserError(f"{str(images)!r} does not exist: give an image or a folder of images")
    found = listing(images)
    names = [name for name in found.files if is_image(name)]
    for note in notes_of(found):
        typer.echo(note, err=True)
    if not names:
        raise UserError(f"{str(images)!r} holds no images: expected files such as .png, .jpg or .webp")
    return images, names


def _read(
    root: Path,
    names: Sequence[str],
    size: tuple[int, int] | None,
    background: tuple[int, int, int],
    unreadable: list[str],
) -> "Iterator[tuple[str, Tensor]]":
    """The images one by one; `unreadable` gathers those that cannot be read. UserError where that is all of them."""
    import torch

    from sfumato.data.dataset import UnreadableImage
    from sfumato.data.reading import decode, decode_reduced
    from sfumato.data.transforms import Framing
    from sfumato.errors import UserError
    from sfumato.images import from_pil, to_unit

    framing = None if size is None else Framing(size, background=background)
    reason = ""
    for name in names:
        try:
            if framing is None:
                pixels = from_pil(decode(root / name, background))
            else:
                found = decode_reduced(
                    root / name, background, framing.size
                )  # so that --size works on the largest, too
                pixels = to_unit(torch.from_numpy(framing.prepare(found.image, found.size)))
        except UnreadableImage as error:
            reason = reason or error.reason
            unreadable.append(f"{name}: {error.reason}")
            continue
        yield name, pixels
    if len(unreadable) == len(names):
        what = f"{str(root / names[0])!r}" if len(names) == 1 else f"none of the {len(names)} images in {str(root)!r}"
        raise UserError(f"{what} can{'not' if len(names) == 1 else ''} be read: {reason}")


def _sizes(root: Path, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(H, W) of every image by its name, from the headers; without those that cannot be read."""
    from sfumato.data.dataset import UnreadableImage
    from sfumato.data.reading import displayed_size

    sizes = {}
    for name in names:
        with suppress(UnreadableImage):
            sizes[name] = displayed_size(root / name)
    return sizes


def _say_cost(
    model: "LatentDiffusion", sizes: Mapping[str, tuple[int, int]], device: "torch.device", computing: "torch.autocast"
) -> None:
    """Reports the cost of the images, if it is high. Raises UserError naming one whose attention would take hours."""
    from sfumato.cli.cost import say_cost
    from sfumato.estimate.images import largest, reconstruction

    if sizes:
        name, size = largest(sizes)
        what = f"{name} has {size[0]}x{size[1]} pixels: its reconstruction"
        work = reconstruction(model.config.autoencoder, list(sizes.values()))
        say_cost(work, device, computing, "give --size, such as --size 1024", what)


def _report(
    folder: Path,
    results: Sequence[Fidelity],
    sheet: "Sequence[tuple[Tensor, Tensor]]",
    unreadable: Sequence[str],
    root: Path,
) -> None:
    """Writes the sheet and the metrics, prints the means."""
    from dataclasses import asdict
    from statistics import fmean

    from sfumato import __version__
    from sfumato.checkpoint import write_text
    from sfumato.cli.options import columns_of
    from sfumato.images import image_grid, save_png, thumbnails
    from sfumato.outputs import one_set_of_files

    if unreadable:
        verb = "is" if len(unreadable) == 1 else "are"
        typer.echo(f"{how_many(len(unreadable), 'file')} in {root} cannot be read and {verb} left out:", err=True)
        for line in unreadable[:NAMED]:
            typer.echo(f"  {line}", err=True)
        if len(unreadable) > NAMED:
            typer.echo(f"  and {len(unreadable) - NAMED} more", err=True)
    lines = [to_json({name: _rounded(value) for name, value in asdict(result).items()}) for result in results]
    if (folder / "metrics.jsonl").exists():
        typer.echo(f"the results that were in {folder} are replaced", err=True)
    cells = thumbnails([image for pair in sheet for image in pair])
    with one_set_of_files(folder):
        write_text(folder / "metrics.jsonl", "".join(line + "\n" for line in lines))
        save_png(folder / "grid.png", image_grid(cells, 2 * columns_of(len(sheet))), {"sfumato": __version__})
    similar = [result.ssim for result in results if result.ssim is not None]
    # equal images have an infinite PSNR, which would hide all others in the mean
    finite = [result.psnr for result in results if result.psnr != float("inf")]
    mean_psnr = f"{fmean(finite):.2f} dB" if finite else "infinite"
    mean_ssim = f"{fmean(similar):.4f}" if similar else "not defined (smaller than 11x11)"
    typer.echo(
        f"mean over {len(results)} of {len(results) + len(unreadable)} files: PSNR {mean_psnr}, SSIM {mean_ssim}"
    )
    typer.echo(f"sheet: {folder / 'grid.png'}; every image: {folder / 'metrics.jsonl'}")


def _rounded(value: str | float | None) -> str | float | None:
    if not isinstance(value, float):
        return value
    return round(value, 4) if value != float("inf") else None
