"""Options of the commands that draw images, and what their values mean."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sfumato.model import LatentDiffusion
    from sfumato.pipeline.plan import Plan
    from sfumato.pipeline.request import ImageGuidance, Projection

StepsOption = Annotated[
    int | None, typer.Option("--steps", help="Steps of the sampler [default: 20, or as many as --times lists].")
]
SamplerOption = Annotated[
    str,
    typer.Option(
        "--sampler",
        metavar="NAME[:KEY=VALUE,...]",
        help="auto says what it takes and why; `sfumato samplers` lists them. Settings as in unipc:order=3.",
    ),
]
EtaOption = Annotated[float | None, typer.Option("--eta", help="Fresh noise of ddim and dpmpp-2m-sde, 0 (none) to 1.")]
GridOption = Annotated[
    str | None,
    typer.Option(
        "--grid",
        metavar="KIND[:KEY=VALUE,...]",
        help="Spacing of the steps: leading, trailing, linspace, quadratic, karras, log-snr, ays. As in karras:rho=5.",
    ),
]
ShiftOption = Annotated[
    float | None, typer.Option("--shift", help="Above 1: more of the steps at noisy times (flow models) [default: 1].")
]
TimesOption = Annotated[
    str | None,
    typer.Option(
        "--times",
        metavar="LIST",
        help="The steps themselves: falling times in [0, 1], the end included, or indices such as 999,850,736,...",
    ),
]
GuidanceOption = Annotated[
    str | None,
    typer.Option(
        "--guidance",
        metavar="S[,S...]",
        help="How strongly to follow the prompt, one for each image or for all; 1 is off [default: 3].",
    ),
]
IntervalOption = Annotated[
    str, typer.Option("--interval", metavar="LO,HI", help="Times in [0, 1] (1: noisiest) at which guidance acts.")
]


def interval_of(text: str) -> tuple[float, float]:
    """(low, high) of "0.2,0.8"."""
    from sfumato.errors import UserError

    try:
        low, high = (float(value) for value in text.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low <= high <= 1:
        raise UserError(f"--interval {text!r} is not LO,HI with 0 <= LO <= HI <= 1, such as 0.2,0.8")
    return low, high


def numbers_of(option: str, text: str) -> list[float]:
    """The numbers of a list with commas. Raises UserError for anything else."""
    from sfumato.errors import UserError

    try:
        return [float(value) for value in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text!r} is not a number, or numbers with commas between them") from None


def guidance_of(text: str | None) -> float | list[float] | None:
    """The scale, or one for each image."""
    if text is None:
        return None
    scales = numbers_of("--guidance", text)
    return scales[0] if len(scales) == 1 else scales


def projection_of(text: str | None) -> "Projection | None":
    """The settings of adaptive projected guidance: "on", or parallel=, limit= and momentum= with commas between."""
    from sfumato.config import nearest
    from sfumato.errors import UserError
    from sfumato.pipeline.request import Projection

    if text is None:
        return None
    values: dict[str, float] = {}
    known = ("parallel", "limit", "momentum")
    for part in [] if text == "on" else text.split(","):
        name, _, value = part.partition("=")
        if name not in known:
            raise UserError(f"--apg {part!r} is not on, or one of {', '.join(known)} with =VALUE{nearest(name, known)}")
        values[name] = numbers_of("--apg", value)[0]
    try:
        return Projection(**values)
    except UserError as error:
        raise UserError(f"--apg {text!r}: {str(error).removeprefix('projection.')}") from None


def weaker_of(path: Path | None, place: "torch.device") -> "LatentDiffusion | None":
    """The model that --autoguide guides away from: a run's early snapshot where it has some, the snapshot of a file."""
    from sfumato.model_folder import load
    from sfumato.training.averages.snapshots import FOLDER, load_snapshot

    if path is None:
        return None
    return load_snapshot(path, device=place) if path.is_file() or (path / FOLDER).is_dir() else load(path, place)


def steering_of(wishes: Sequence[str], scale: float, size: tuple[int, int]) -> "ImageGuidance | None":
    """The image guidance of the options, for images of size (H, W). Raises UserError for what is no wish."""
    from sfumato.pipeline.request import ImageGuidance
    from sfumato.sampling.image_losses import Together

    if not wishes:
        return None
    return ImageGuidance(Together(tuple(_wish(wish, size) for wish in wishes)), scale)


def _wish(text: str, size: tuple[int, int]) -> Any:
    from sfumato.autoencoder.perceptual import EfficientNetFeatures, as_colour, unit_normalise
    from sfumato.errors import UserError
    from sfumato.sampling.image_losses import Colour, FeatureMatch, LowResolution

    kind, equals, value = text.partition("=")
    if kind not in ("low-res", "colour", "features") or not equals or not value:
        raise UserError(f"--steer {text!r} is not low-res=IMAGE, colour=IMAGE, colour=#rrggbb or features=IMAGE")
    if kind == "low-res":
        return LowResolution(_low_resolution(Path(value), size))
    if kind == "colour":
        if Path(value).is_file():
            return Colour.of(image_of(Path(value), None, "--steer:"))
        return Colour(_named_colour(value))
    network = EfficientNetFeatures()
    target = image_of(Path(value), size, "--steer:")[None]
    return FeatureMatch(lambda images: [unit_normalise(f) for f in network.net(as_colour(images))], target)


def _named_colour(name: str) -> "Tensor":
    import torch
    from PIL import ImageColor

    from sfumato.errors import UserError
    from sfumato.images import to_unit

    try:
        rgb = ImageColor.getcolor(name, "RGB")
    except ValueError:
        raise UserError(
            f"--steer colour={name}: this is neither an image nor a colour such as red or #b03060"
        ) from None
    return to_unit(torch.tensor(rgb))


def _low_resolution(path: Path, size: tuple[int, int]) -> "Tensor":
    """(1, 3, h, w): a file smaller than the image at its own size, cropped to its shape; else an eighth of it."""
    import torch.nn.functional as F

    H, W = size
    _, height, width = image_of(path, None, "--steer:").shape
    if height < H and width < W:
        shrunk = max(H / height, W / width)
        return image_of(path, (max(1, round(H / shrunk)), max(1, round(W / shrunk))), "--steer:")[None]
    return F.adaptive_avg_pool2d(image_of(path, size, "--steer:")[None], (max(2, H // 8), max(2, W // 8)))


def image_of(path: Path, size: tuple[int, int] | None, said: str) -> "Tensor":
    """A file as (3, H, W) in [-1, 1], cropped to the size. Raises UserError where it cannot be read."""
    import torch

    from sfumato.cli.options import refused
    from sfumato.data.reading import decode
    from sfumato.data.transforms import Framing
    from sfumato.images import from_pil, to_unit

    with refused(path, said):
        image = decode(path, (255, 255, 255))
    if size is None:
        return from_pil(image)
    return to_unit(torch.from_numpy(Framing(size).prepare(image)))


def said(planned: "Plan") -> str:
    """The sentence that says what `auto` picked; empty where the user chose."""
    choice = planned.choice
    if not choice.reason:
        return ""
    order = f" of order {order}" if (order := getattr(choice.sampler, "order", None)) else ""
    return f"sampler auto took {choice.sampler.kind}{order} on the {choice.grid.kind} grid: {choice.reason}"
