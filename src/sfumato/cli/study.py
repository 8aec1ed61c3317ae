"""`sfumato study downsampling` and `sfumato study baselines`: the paper's questions on one's own data."""

import os
import re
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.arguments import Command, Group, MaybePath
from sfumato.cli.options import DeviceOption, PrecisionOption, SizeOption

if TYPE_CHECKING:
    from sfumato.data.table import DataConfig

app = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

OutOption = Annotated[Path, typer.Option("--out", help="The study's folder; an interrupted study there goes on.")]
DataOption = Annotated[
    str,
    typer.Option("--data", help="The folder of images; toy for the built-in world; zoo:NAME or FILE.yaml: its data."),
    MaybePath(),
]
BudgetOption = Annotated[
    str, typer.Option("--budget", help="Training time per method and seed, both stages together: 90s, 30m, 2h, 1d.")
]
SeedsOption = Annotated[int, typer.Option("--seeds", help="Training runs per method.")]
ParametersOption = Annotated[
    int, typer.Option("--parameters", help="Approximate parameters of every second-stage network.")
]
ChannelsOption = Annotated[int, typer.Option("--channels", help="Channels of every autoencoder's first level.")]
PerceptualOption = Annotated[
    bool, typer.Option("--perceptual", help="Train stage 1 with the evaluator's features too: sharper, less fair.")
]
SamplesOption = Annotated[int, typer.Option("--samples", help="Images generated for each evaluation.")]
SamplingStepsOption = Annotated[
    str, typer.Option("--sampling-steps", help="Numbers of sampling steps at which speed and quality are measured.")
]
FeatureSizeOption = Annotated[
    int,
    typer.Option("--feature-size", help="Resolution at which features are computed; 64 is ten times cheaper than 224."),
]
LengthOption = Annotated[int, typer.Option("--length", help="Images of the toy world.")]
MOST_SECONDS = 365 * 86400.0
MOST_DIGITS = 10
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@app.callback()
def _study() -> None:
    pass


@app.command("downsampling", cls=Command)
def downsampling(
    out: OutOption,
    data: DataOption,
    budget: BudgetOption = "30m",
    factors: Annotated[
        str, typer.Option("--factors", help="Downsampling factors; 1 is pixel space [default: those that fit].")
    ] = "",
    equal: Annotated[str, typer.Option("--equal", help="Budget held equal across factors: time or compute.")] = "time",
    seeds: SeedsOption = 1,
    size: SizeOption = None,
    parameters: ParametersOption = 1_500_000,
    channels: ChannelsOption = 24,
    perceptual: PerceptualOption = False,
    samples: SamplesOption = 512,
    sampling_steps: SamplingStepsOption = "5,10,20,50",
    feature_size: FeatureSizeOption = 64,
    length: LengthOption = 10_000,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Find the downsampling factor that suits the data.

    Trains both stages for every factor with the same budget and evaluates them; OUT/study.html shows the results.
    """
    from sfumato.cli.options import parse_size
    from sfumato.training.data import height_width

    source = data_config(data, parse_size(size), length)
    chosen = {
        "factors": numbers("--factors", factors) if factors else fitting(height_width(source)),
        "equal": equal,
    }
    shared = Shared(budget, seeds, parameters, channels, perceptual, samples, sampling_steps, precision)
    run(out, {**shared.settings(source), **chosen}, feature_size, device, precision)


@app.command("baselines", cls=Command)
def baselines(
    out: OutOption,
    data: DataOption,
    budget: BudgetOption = "15m",
    factor: Annotated[
        int, typer.Option("--factor", help="Downsampling factor of latent diffusion and of the codes.")
    ] = 4,
    codebook: Annotated[int, typer.Option("--codebook", help="Codes of the VQ autoencoder.")] = 512,
    seeds: SeedsOption = 2,
    size: SizeOption = None,
    parameters: ParametersOption = 1_500_000,
    channels: ChannelsOption = 24,
    perceptual: PerceptualOption = False,
    samples: SamplesOption = 512,
    sampling_steps: SamplingStepsOption = "5,10,20,50",
    feature_size: FeatureSizeOption = 64,
    length: LengthOption = 10_000,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Compare latent diffusion with its baselines.

    Latent diffusion, diffusion of pixels, and a transformer over VQ codes train for the same time, first stages
    included; OUT/study.html sets them side by side.
    """
    from sfumato.cli.options import parse_size
    from sfumato.errors import UserError

    if factor == 1:
        raise UserError("--factor 1 is pixel space, which is trained anyway: give 2, 4, 8, 16 or 32")
    source = data_config(data, parse_size(size), length)
    chosen = {"factors": [factor, 1], "codes": [factor], "codebook": codebook}
    shared = Shared(budget, seeds, parameters, channels, perceptual, samples, sampling_steps, precision)
    run(out, {**shared.settings(source), **chosen}, feature_size, device, precision)


@dataclass(frozen=True)
class Shared:
    """What both studies are given, as typed."""

    budget: str
    seeds: int
    parameters: int
    channels: int
    perceptual: bool
    samples: int
    sampling_steps: str
    precision: str

    def settings(self, data: "DataConfig") -> dict[str, Any]:
        """As `study.yaml` has them. Raises UserError."""
        read = {"budget": seconds(self.budget), "sampling_steps": numbers("--sampling-steps", self.sampling_steps)}
        return {**asdict(self), **read, "data": data.model_dump(mode="json")}


def run(out: Path, settings: dict[str, Any], feature_size: int, device: str, precision: str) -> None:
    """Runs a study, or what is left of it. Raises UserError."""
    from sfumato.cli.options import at_least, chosen_autocast, chosen_device
    from sfumato.cli.phases import clock
    from sfumato.cli.progress import bars
    from sfumato.config import parse
    from sfumato.evaluation.features import efficientnet_lite0
    from sfumato.outputs import written
    from sfumato.studies.context import Stopped
    from sfumato.studies.plan import StudyConfig, arms
    from sfumato.studies.run import PAGE_FILE, run_study
    from sfumato.training.workers import Workers, use_all_cores

    at_least("--feature-size", feature_size, 8, 4096)
    place = chosen_device(device)
    chosen_autocast(place, precision)
    config = parse(settings, StudyConfig, "study")
    count = len(arms(config))
    plan = f"{count} training runs of {clock(config.budget)} each: {clock(count * config.budget)} of training in all"
    typer.echo(f"{plan}, plus encoding and evaluation", err=True)
    use_all_cores()
    network = efficientnet_lite0(feature_size)
    workers = Workers("cpu" if place.type == "cpu" else None)
    command = shlex.join(["sfumato", *sys.argv[1:]])
    try:
        with bars() as (say, progress), written(out, begun=lambda: any(out.rglob("log.jsonl"))):
            run_study(config, out, network, workers, command, say, progress)
    except Stopped as stopped:  # the training has printed how to continue
        raise typer.Exit(128 + stopped.number) from None
    typer.echo(f"page: {out / PAGE_FILE}")


def data_config(data: str, size: tuple[int, int] | None, length: int) -> "DataConfig":
    """The toy world, what a configuration reads, or a folder; 64 pixels a side where no size is given.

    Raises UserError for a configuration without data of its own.
    """
    from sfumato.cli.options import at_least
    from sfumato.config import ZOO_PREFIX, parse, read_source, section
    from sfumato.data.folder_config import FolderConfig
    from sfumato.data.toyworld.dataset import ToyWorldConfig
    from sfumato.errors import UserError
    from sfumato.studies.plan import StudyData

    if data.startswith(ZOO_PREFIX) or data.endswith(".yaml"):
        given = section(read_source(data), "data")
        if given.get("kind", "folder") == "folder" and "path" not in given:
            raise UserError(f"--data {data}: that configuration names no images; give the folder of images itself")
        return parse({"data": given | ({} if size is None else {"size": list(size)})}, StudyData, data).data
    side = size or (64, 64)
    if data == "toy" and not os.path.isdir(data):
        at_least("--length", length, 1)
        return parse({"kind": "toy", "size": list(side), "length": length}, ToyWorldConfig, "--length")
    return parse({"kind": "folder", "path": data, "size": list(side)}, FolderConfig, "--data")


def seconds(text: str) -> float:
    """Of "90s", "30m", "2h" or "1d". Raises UserError for anything else."""
    from sfumato.cli.options import within
    from sfumato.errors import UserError

    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip().lower())
    if found is None or float(found.group(1)) == 0:
        raise UserError(f"--budget {text!r} is not a time: give a number and a unit, such as 90s, 30m, 2h or 1d")
    return within("--budget", float(found.group(1)) * UNITS[found.group(2)], 1, MOST_SECONDS, "a time in seconds")


def numbers(name: str, text: str) -> list[int]:
    """Of "1,2,4". Raises UserError where one is no whole number from 1 on."""
    from sfumato.errors import UserError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < MOST_DIGITS and int(part) >= 1 for part in parts):
        raise UserError(f"{name} {text!r} is not a list of whole numbers such as 1,2,4, each below a billion")
    return [int(part) for part in parts]


def fitting(size: tuple[int, int]) -> list[int]:
    """The paper's factors that leave a latent of 2x2 at least."""
    return [f for f in (1, 2, 4, 8, 16, 32) if not size[0] % f and not size[1] % f and min(size) >= 2 * f]
