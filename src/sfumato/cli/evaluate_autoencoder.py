"""`sfumato evaluate-autoencoder`."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.evaluate import DataArgument, HashOption, ResizeOption, WeightsOption
from sfumato.cli.options import BatchOption, DeviceOption, ModelArgument, PrecisionOption, SizeOption

if TYPE_CHECKING:
    from sfumato.autoencoder.perceptual import LPIPS


def evaluate_autoencoder(
    model: ModelArgument,
    data: DataArgument,
    out: Annotated[Path | None, typer.Option("--out", help="A folder for card.json and index.html.")] = None,
    n: Annotated[int | None, typer.Option("--n", help="Images to use [default: all, 10,000 of the toy world].")] = None,
    features: Annotated[
        str,
        typer.Option("--features", help="Networks of rFD, comma-separated, such as inception; none to skip it."),
    ] = "efficientnet-lite0",
    weights: WeightsOption = None,
    sha256: HashOption = None,
    resize: ResizeOption = None,
    size: SizeOption = None,
    pad: Annotated[bool, typer.Option("--pad", help="Pad images to the frame instead of cropping.")] = False,
    background: Annotated[str, typer.Option("--background", help="Behind transparent images.")] = "white",
    batch: BatchOption = 16,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Measure an autoencoder's reconstructions and its latent.

    rFD, PSNR, SSIM, LPIPS if its weights are given (vgg16 and lpips), latent statistics, share of high frequencies,
    equivariance, bits per dimension.
    """
    from sfumato.cards.card import PAGE_FILE, new_card
    from sfumato.cards.first_stage import measure_autoencoder
    from sfumato.cards.measure import protocol_of
    from sfumato.cards.page import page
    from sfumato.checkpoint import write_text
    from sfumato.cli.evaluate import print_card
    from sfumato.cli.networks import loaded_networks
    from sfumato.cli.options import (
        MOST_AT_ONCE,
        MOST_IMAGES,
        at_least,
        chosen_autocast,
        chosen_device,
        enough_memory,
        made_fast,
        out_folder,
        parse_size,
    )
    from sfumato.cli.progress import bars
    from sfumato.cli.real_images import opened_data
    from sfumato.model_folder import load
    from sfumato.outputs import one_set_of_files
    from sfumato.training.workers import use_all_cores

    at_least("--n", 1 if n is None else n, 1, MOST_IMAGES)
    at_least("--batch", batch, 1, MOST_AT_ONCE)
    use_all_cores()
    place = chosen_device(device)
    computing = chosen_autocast(place, precision)
    names = [] if features == "none" else [name.strip() for name in features.split(",")]
    networks = loaded_networks(names, weights, sha256, resize, place)
    lpips = _lpips(weights, sha256)
    loaded = load(model, place)
    frame = parse_size(size) or loaded.config.image_size
    loaded.latent_shape_of(frame)
    folder = None if out is None else out_folder(out)
    t_start = time.monotonic()
    with bars() as (_, progress):
        dataset = opened_data(data, frame, pad, background, loaded, progress("scanning"))
        with made_fast(loaded, computing), enough_memory(batch):
            result = measure_autoencoder(
                loaded, dataset, n, networks, None if lpips is None else lpips.to(place), batch, progress("images")
            )
    card = new_card(
        "autoencoder",
        place,
        subject={"kind": "model", "path": str(model), "digest": loaded.digest},
        data={"path": data, "images": len(dataset)},
        protocol=protocol_of(dataset, result.count, result.count, frame, "none"),
        sampling={"precision": "bfloat16" if computing._enabled else "float32", "device": place.type},
        metrics=result.metrics,
        details=result.details,
        warnings=result.warnings,
        seconds={"all": round(time.monotonic() - t_start, 2)},
    )
    if folder is not None:
        with one_set_of_files(folder):
            card.save(folder)
            write_text(folder / PAGE_FILE, page(card, result.pairs))
    print_card(card, folder)


def _lpips(weights: Sequence[str] | None, sha256: Sequence[str] | None) -> "LPIPS | None":
    """LPIPS if both of its files are given. Raises UserError if only one of them is."""
    from sfumato.autoencoder.perceptual import load_lpips
    from sfumato.cli.networks import FILES, named_values
    from sfumato.errors import UserError

    places, hashes = named_values("--weights", weights), named_values("--sha256", sha256)
    given = [name for name in FILES if name in places]
    if not given:
        return None
    if len(given) < len(FILES):
        raise UserError(f"LPIPS needs --weights vgg16=FILE and --weights lpips=FILE; only {given[0]} was given")
    backbone, heads = (Path(places[name]) for name in FILES)
    return load_lpips(backbone, heads, hashes.get("vgg16"), hashes.get("lpips"))
