"""`sfumato evaluate-autoencoder`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli.evaluate import MeasureFlags, data_flag
from sfumato.cli.flags import REQUIRED, command, flag
from sfumato.cli.forms import SAMPLES, request_flags
from sfumato.pipeline.options import Range

if TYPE_CHECKING:
    from sfumato.autoencoder.perceptual import LPIPS


@dataclass(frozen=True, kw_only=True)
class EvaluateAutoencoderFlags(MeasureFlags):
    """The options of `sfumato evaluate-autoencoder` beside those of a request."""

    model: Path = flag(
        REQUIRED, "what to sample", "A model folder, or the folder of a run.", metavar="MODEL", argument=True
    )
    data: str = data_flag()
    out: Path | None = flag(None, "output", "A folder for card.json and index.html.")
    n: int | None = flag(
        None,
        "what to sample",
        "Images to use [default: all, 10,000 of the toy world].",
        Range(1, SAMPLES, whole=True),
    )
    features: str = flag(
        "efficientnet-lite0",
        "output",
        "Networks of rFD, comma-separated, such as inception; none to skip it.",
    )


@command(EvaluateAutoencoderFlags, request_flags("size", "batch"))
def evaluate_autoencoder(flags: EvaluateAutoencoderFlags, options: dict[str, Any]) -> None:
    """Measure an autoencoder and its latents on images.

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
    from sfumato.cli.options import chosen_autocast, chosen_device, enough_memory, made_fast, out_folder
    from sfumato.cli.progress import bars
    from sfumato.cli.real_images import opened_data
    from sfumato.model_folder import load
    from sfumato.outputs import one_set_of_files
    from sfumato.training.workers import use_all_cores

    use_all_cores()
    device = chosen_device(flags.device)
    computing = chosen_autocast(device, flags.precision)
    names = [] if flags.features == "none" else [name.strip() for name in flags.features.split(",")]
    networks = loaded_networks(names, flags.weights, flags.sha256, flags.resize, device)
    lpips = _lpips(flags.weights, flags.sha256)
    model = load(flags.model, device)
    size, batch = options["size"] or model.config.image_size, options["batch"]
    model.latent_shape_of(size)
    folder = None if flags.out is None else out_folder(flags.out)
    t_start = time.monotonic()
    with bars() as (_, progress):
        dataset = opened_data(flags.data, size, flags.pad, flags.background, model, progress("scanning"))
        perceptual = None if lpips is None else lpips.to(device)
        with made_fast(model, computing), enough_memory(batch):
            result = measure_autoencoder(model, dataset, flags.n, networks, perceptual, batch, progress("images"))
    card = new_card(
        "autoencoder",
        device,
        subject={"kind": "model", "path": str(flags.model), "digest": model.digest},
        data={"path": flags.data, "images": len(dataset)},
        protocol=protocol_of(dataset, result.count, result.count, size, "none"),
        sampling={"precision": "bfloat16" if computing._enabled else "float32", "device": device.type},
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
