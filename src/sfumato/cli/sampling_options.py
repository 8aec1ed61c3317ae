"""Options of the commands that draw pictures, and what their values mean."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sfumato.diffusion.schedule import Schedule
    from sfumato.drawing import Plan
    from sfumato.generate import Projection, Steering
    from sfumato.model import LatentDiffusion
    from sfumato.sampling.grids import GridConfig
    from sfumato.sampling.table import SamplerConfig

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
        help="How strongly to follow the prompt, one for each picture or for all; 1 is off [default: 3].",
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
    """The scale, or one for each picture."""
    if text is None:
        return None
    scales = numbers_of("--guidance", text)
    return scales[0] if len(scales) == 1 else scales


def settings_of(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the settings of "name:key=value,key=value"; values are read as YAML."""
    from sfumato.config import apply_overrides

    name, _, rest = text.partition(":")
    return name, apply_overrides({}, [part for part in rest.split(",") if part])


def configured(text: str, eta: float | None) -> "str | SamplerConfig":
    """The sampler of the options, or "auto". Raises UserError for an unknown one, or settings it has not."""
    from sfumato.config import nearest
    from sfumato.drawing import AUTO
    from sfumato.errors import UserError
    from sfumato.model import sampler_named
    from sfumato.sampling.table import SAMPLERS

    name, settings = settings_of(text)
    having = [other for other, facts in SAMPLERS.items() if "eta" in facts.config.model_fields]
    if name == AUTO:
        if settings or eta is not None:
            given = "--eta" if eta is not None else next(iter(settings))
            raise UserError(f"{given} does not fit the sampler auto, which decides by itself: name a sampler")
        return AUTO
    if name not in SAMPLERS:
        known = [AUTO, *SAMPLERS]
        raise UserError(f"--sampler {name!r} is not one of {', '.join(known)}{nearest(name, known)}")
    if eta is not None and name not in having:
        raise UserError(f"--eta does not fit the sampler {name}: it belongs to {' and '.join(having)}")
    eta = settings.get("eta", eta) if name in having else eta
    if isinstance(eta, int | float) and not 0 <= eta <= 1:
        end = "as ddpm" if name == "ddim" else "all noise drawn afresh"
        raise UserError(f"--eta is {eta:g}: {name} takes values between 0 (deterministic) and 1 ({end})")
    return sampler_named(name, **({**settings, "eta": eta} if eta is not None else settings))


def grid_of(grid: str | None, shift: float | None) -> "GridConfig | None":
    """The grid of the options, None where it is left to the sampler. Raises UserError for an unknown one."""
    from typing import get_args

    from sfumato.config import parse
    from sfumato.errors import UserError
    from sfumato.sampling.grids import GridConfig, GridKind

    if grid is None:
        return None
    name, settings = settings_of(grid)
    kinds = [kind for kind in get_args(GridKind) if kind != "times"]
    if name not in kinds:
        raise UserError(f"--grid {name!r} is not one of {', '.join(kinds)}")
    extra = {} if shift is None else {"shift": shift}
    return parse({"kind": name, **settings, **extra}, GridConfig, f"grid {name}")


def times_of(text: str, schedule: "Schedule", steps: int | None) -> "GridConfig":
    """The grid of a list: times with their end, or the table's indices (numbers above 1), which end at t = 0.

    Another number of steps than the list has is interpolated between its entries. Raises UserError for a list that
    does not fall, or leaves the schedule.
    """
    from sfumato.errors import UserError
    from sfumato.sampling.grids import GridConfig, resampled

    values = numbers_of("--times", text)
    if max(values) > 1:
        outside = [v for v in values if not 0 <= v <= schedule.steps - 1]
        if outside:
            raise UserError(f"--times: index {outside[0]:g} is outside 0 to {schedule.steps - 1}, the model's steps")
        values = [(v + 1) / schedule.steps for v in values] + [0.0]
    falls = all(a > b for a, b in pairwise(values))
    if len(values) < 2 or not falls or values[0] > 1 or values[-1] < 0:
        raise UserError(f"--times {text!r} must be at least two times that fall within [0, 1], or falling indices")
    return GridConfig(kind="times", times=resampled(values, schedule, steps or len(values) - 1))


def projection_of(text: str | None) -> "Projection | None":
    """The settings of adaptive projected guidance: "on", or parallel=, limit= and momentum= with commas between."""
    from sfumato.config import nearest
    from sfumato.errors import UserError
    from sfumato.generate import Projection

    if text is None:
        return None
    values: dict[str, float] = {}
    known = ("parallel", "limit", "momentum")
    for part in [] if text == "on" else text.split(","):
        name, _, value = part.partition("=")
        if name not in known:
            raise UserError(f"--apg {part!r} is not on, or one of {', '.join(known)} with =VALUE{nearest(name, known)}")
        values[name] = numbers_of("--apg", value)[0]
    if values.get("limit", 1.0) <= 0 or not -1 < values.get("momentum", 0.0) < 1:
        raise UserError(f"--apg {text!r}: limit must be above 0, and momentum between -1 and 1, such as -0.5")
    return Projection(**values)


def weaker_of(path: Path | None, place: "torch.device") -> "LatentDiffusion | None":
    """The model that --autoguide leads away from: a run's early snapshot where it has some, the snapshot of a file."""
    from sfumato.model import load
    from sfumato.snapshots import FOLDER, load_snapshot

    if path is None:
        return None
    return load_snapshot(path, device=place) if path.is_file() or (path / FOLDER).is_dir() else load(path, place)


def steering_of(wishes: Sequence[str], scale: float, size: tuple[int, int]) -> "Steering | None":
    """The image guidance of the options, for pictures of size (H, W). Raises UserError for what is no wish."""
    from sfumato.errors import UserError
    from sfumato.generate import Steering
    from sfumato.sampling.image_losses import Together

    if not wishes:
        return None
    if not 0 < scale < float("inf"):
        raise UserError(f"--steer-scale is {scale:g}: give a number above 0, 1 is the usual one")
    return Steering(Together(tuple(_wish(wish, size) for wish in wishes)), scale)


def _wish(text: str, size: tuple[int, int]) -> Any:
    from sfumato.autoencoder.perceptual import EfficientNetFeatures, as_colour, unit_normalise
    from sfumato.errors import UserError
    from sfumato.sampling.image_losses import Colour, FeatureMatch, LowResolution

    kind, equals, value = text.partition("=")
    if kind not in ("low-res", "colour", "features") or not equals or not value:
        raise UserError(f"--steer {text!r} is not low-res=PICTURE, colour=PICTURE, colour=#rrggbb or features=PICTURE")
    if kind == "low-res":
        return LowResolution(_low_resolution(Path(value), size))
    if kind == "colour":
        if Path(value).is_file():
            return Colour.of(picture_of(Path(value), None, "--steer:"))
        return Colour(_named_colour(value))
    network = EfficientNetFeatures()
    target = picture_of(Path(value), size, "--steer:")[None]
    return FeatureMatch(lambda images: [unit_normalise(f) for f in network.net(as_colour(images))], target)


def _named_colour(name: str) -> "Tensor":
    import torch
    from PIL import ImageColor

    from sfumato import pictures
    from sfumato.errors import UserError

    try:
        rgb = ImageColor.getcolor(name, "RGB")
    except ValueError:
        raise UserError(
            f"--steer colour={name}: this is neither a picture nor a colour such as red or #b03060"
        ) from None
    return pictures.to_unit(torch.tensor(rgb))


def _low_resolution(path: Path, size: tuple[int, int]) -> "Tensor":
    """(1, 3, h, w): a file smaller than the picture at its own size, cropped to its shape; else an eighth of it."""
    import torch.nn.functional as F

    H, W = size
    _, height, width = picture_of(path, None, "--steer:").shape
    if height < H and width < W:
        shrunk = max(H / height, W / width)
        return picture_of(path, (max(1, round(H / shrunk)), max(1, round(W / shrunk))), "--steer:")[None]
    return F.adaptive_avg_pool2d(picture_of(path, size, "--steer:")[None], (max(2, H // 8), max(2, W // 8)))


def picture_of(path: Path, size: tuple[int, int] | None, said: str) -> "Tensor":
    """A file as (3, H, W) in [-1, 1], cropped to the size. Raises UserError where it cannot be read."""
    import torch

    from sfumato import pictures
    from sfumato.cli.options import refused
    from sfumato.data.reading import decode
    from sfumato.data.transforms import Framing

    with refused(path, said):
        image = decode(path, (255, 255, 255))
    if size is None:
        return pictures.from_pil(image)
    return pictures.to_unit(torch.from_numpy(Framing(size).prepare(image)))


def sampler_facts(planned: "Plan") -> dict[str, Any]:
    """What a picture tells of its way: the sampler and the grid, with those of their settings that are not usual."""
    sampler, grid = planned.choice.sampler, planned.choice.grid
    changed = {name: value for name, value in sampler.model_dump(exclude_defaults=True).items() if name != "kind"}
    unusual = grid.model_dump(exclude_defaults=True)
    unusual.pop("kind", None)
    return {"sampler": sampler.kind, **changed, "steps": planned.steps, "grid": grid.kind, **unusual}


def said(planned: "Plan") -> str:
    """The sentence that says what `auto` picked; empty where the user chose."""
    choice = planned.choice
    if not choice.reason:
        return ""
    order = f" of order {order}" if (order := getattr(choice.sampler, "order", None)) else ""
    return f"sampler auto took {choice.sampler.kind}{order} on the {choice.grid.kind} grid: {choice.reason}"
