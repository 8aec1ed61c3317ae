"""`sfumato estimate`."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from sfumato.cli.arguments import MaybePath
from sfumato.cli.options import DeviceOption
from sfumato.cli.train import ConfigArgument, OverridesArgument
from sfumato.plain_json import to_json

if TYPE_CHECKING:
    from sfumato.data.conditions.config import ConditionsConfig
    from sfumato.data.table import DataConfig
    from sfumato.estimate.from_config import Means
    from sfumato.estimate.report import Estimate, SampleCost
    from sfumato.model import LatentDiffusion
    from sfumato.training.autoencoder import AutoencoderRun
    from sfumato.training.diffusion import DiffusionRun

Run = TypeVar("Run", "AutoencoderRun", "DiffusionRun")
MOST_TIMED = 10_000
PLACEHOLDER = Path("a-folder-of-images")


def estimate(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    autoencoder: Annotated[
        str | None,
        typer.Option("--autoencoder", help="For stage 2: a run, a model folder, a stage 1 configuration, or pixels."),
        MaybePath(),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="The folder of images: its number counts, and how fast it is read.")
    ] = None,
    device: DeviceOption = "auto",
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Time a few steps here and foresee the training.")
    ] = True,
    steps: Annotated[int, typer.Option("--steps", help="Steps to time of each kind.")] = 6,
    sampling_steps: Annotated[int, typer.Option("--sampling-steps", help="Steps of the samplers' images.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a training will cost.

    Operations, parameters, memory, time and energy of CONFIG's training, and of an image by every sampler.
    """
    from sfumato.cli.options import MOST_SAMPLING_STEPS, at_least, chosen_device
    from sfumato.cli.train import with_overrides
    from sfumato.config import read_source
    from sfumato.errors import UserError
    from sfumato.training.autoencoder import AutoencoderRun
    from sfumato.training.diffusion import DiffusionRun
    from sfumato.training.workers import use_all_cores

    at_least("--steps", steps, 1, MOST_TIMED)
    at_least("--sampling-steps", sampling_steps, 1, MOST_SAMPLING_STEPS)
    use_all_cores()
    place = chosen_device(device).type
    timed = Timed(place, steps) if measure else None
    schema = DiffusionRun if "denoiser" in read_source(config) else AutoencoderRun
    raw = with_overrides(config, overrides or [], schema)
    if "denoiser" in raw:
        account = _second_stage(raw, config, first_stage_of(autoencoder, config, raw), data, sampling_steps, timed)
    elif "model" in raw:
        if autoencoder is not None:
            raise UserError(f"--autoencoder belongs to stage 2, and {config!r} describes stage 1: leave it out")
        account = _first_stage(raw, config, data, timed)
    else:
        raise UserError(f"config {config!r} describes no training: it has neither a model nor a denoiser section")
    if as_json:
        typer.echo(to_json(facts(account), indent=2))
    else:
        print_estimate(account)


@dataclass(frozen=True)
class Timed:
    """How times are taken."""

    device: str
    steps: int


def _first_stage(raw: dict[str, Any], name: str, data: Path | None, timed: Timed | None) -> "Estimate":
    from sfumato.estimate import from_config
    from sfumato.training.autoencoder import AutoencoderRun

    run = parsed(raw, data, AutoencoderRun, name, None)
    account = from_config.first_stage(run, name)
    if timed is None:
        return account
    means, images = _means(run.data, timed)
    return replace(from_config.measured_first_stage(account, run, means), images=images)


def _second_stage(
    raw: dict[str, Any],
    name: str,
    first: "LatentDiffusion",
    data: Path | None,
    sampling_steps: int,
    timed: Timed | None,
) -> "Estimate":
    from sfumato.estimate import from_config
    from sfumato.training.data import height_width
    from sfumato.training.diffusion import DiffusionRun

    run = parsed(raw, data, DiffusionRun, name, first.config.image_size)
    theirs = first.config.model_copy(update={"image_size": height_width(run.data)})
    first = replace(first, config=theirs)  # its images may have another size than those that stage 1 learnt
    account = from_config.second_stage(run, first, name, sampling_steps)
    read = [name for name in ("map", "boxes") if getattr(run.conditions, name) is not None]
    if timed is not None and read and is_placeholder(run.data):
        told = f"no times, for conditions.{' and conditions.'.join(read)} cannot be made up: give the images by --data"
        typer.echo(f"{told}; operations, parameters and memory follow", err=True)
        timed = None
    if timed is None:
        return account
    means, images = _means(run.data, timed, run.conditions)
    return replace(from_config.measured_second_stage(account, run, first, means), images=images)


def parsed(raw: dict[str, Any], data: Path | None, schema: type[Run], name: str, size: tuple[int, int] | None) -> Run:
    """The run's configuration; a folder that is not named yet has a placeholder's name."""
    from sfumato.cli.train import with_data
    from sfumato.config import parse, section

    given = section(raw, "data")
    nameless = given.get("kind", "folder") == "folder" and "path" not in given
    return parse(with_data(raw, data or (PLACEHOLDER if nameless else None), size), schema, name)


def is_placeholder(config: "DataConfig") -> bool:
    """Whether it is a folder that is not named yet."""
    return config.kind == "folder" and config.path == PLACEHOLDER


def _means(
    config: "DataConfig", timed: Timed, conditions: "ConditionsConfig | None" = None
) -> tuple["Means", int | None]:
    """What to measure with, and how many images the data set has: made-up ones, unknown, for a nameless folder."""
    from sfumato.data.conditions.config import ConditionsConfig
    from sfumato.data.table import open_dataset
    from sfumato.estimate.from_config import Means
    from sfumato.estimate.synthetic import SyntheticImages
    from sfumato.training.conditions import with_fields, with_room
    from sfumato.training.data import height_width
    from sfumato.training.workers import Workers

    conditions = conditions or ConditionsConfig()
    nameless = is_placeholder(config)
    images = SyntheticImages(height_width(config)) if nameless else open_dataset(with_room(config, conditions))
    data, inputs, _ = with_fields(images, conditions)
    workers = Workers("cpu" if timed.device == "cpu" else None)
    return Means(workers, data, timed.steps, inputs), None if nameless else len(data)


def first_stage_of(autoencoder: str | None, config: str, raw: dict[str, Any]) -> "LatentDiffusion":
    """The first stage under a second one, trained or not. Raises UserError where it cannot be told which."""
    from sfumato.config import ZOO_PREFIX, read_source
    from sfumato.model import ModelConfig, build, pixel_space
    from sfumato.model_folder import load
    from sfumato.training.autoencoder import AutoencoderRun
    from sfumato.training.data import height_width
    from sfumato.training.diffusion import DiffusionRun

    chosen = autoencoder or usual_first_stage(config)
    if chosen == "pixels":
        return pixel_space(height_width(parsed(raw, None, DiffusionRun, config, None).data))
    if not chosen.startswith(ZOO_PREFIX) and Path(chosen).suffix not in (".yaml", ".yml"):
        return load(chosen)
    run = parsed(read_source(chosen), None, AutoencoderRun, chosen, None)
    return build(ModelConfig(autoencoder=run.model, image_size=height_width(run.data)))


def usual_first_stage(config: str) -> str:
    """The shipped first stage of a shipped second stage."""
    from sfumato.config import ZOO_PREFIX, zoo_names
    from sfumato.errors import UserError
    from sfumato.interop.published import PUBLISHED

    for row in PUBLISHED:
        if row.config == config:
            return "pixels" if row.first_stage is None else f"{ZOO_PREFIX}ldm/{row.first_stage}"
    room, _, name = config.removeprefix(ZOO_PREFIX).partition("/")
    if config.startswith(ZOO_PREFIX) and name == "pixels":
        return "pixels"
    kin = f"{room}/{name[: name.rfind('-') + 1]}autoencoder"  # small-text stands on small-autoencoder
    for stage in (kin, f"{room}/autoencoder"):
        if config.startswith(ZOO_PREFIX) and stage in zoo_names():
            return f"{ZOO_PREFIX}{stage}"
    raise UserError(
        f"--autoencoder is missing: {config!r} is a second stage; give a run, a model folder, a stage 1 configuration "
        "such as zoo:toy/autoencoder, or pixels"
    )


# ---- telling


def facts(account: "Estimate") -> dict[str, Any]:
    """The account as JSON."""
    from sfumato.estimate.report import equivalents

    told = asdict(account)
    for phase, told_phase in zip(account.phases, told["phases"], strict=True):
        told_phase["work"]["total"] = phase.work.total
        told_phase["utilisation"] = account.utilisation(phase)
    told["memory"]["total"] = account.memory.total
    told |= {"steps": account.steps, "operations": account.operations}
    told["equivalents"] = None if account.operations is None else asdict(equivalents(account.operations))
    forecast = account.forecast
    told["foreseen"] = None if forecast is None else {**asdict(forecast), "total": forecast.total}
    return told


def print_estimate(account: "Estimate") -> None:
    """The account as tables."""
    from sfumato.cli.tables import show

    show(None, [*_networks(account), *_training(account), *_elsewhere(account)])
    if account.forecast is not None:
        typer.echo("")
        show(None, _here(account))
    if account.sample_costs:
        typer.echo("")
        show(
            ["sampler", "steps", "calls", "operations an image", "time an image"],
            [_image(p) for p in account.sample_costs],
        )


def _networks(account: "Estimate") -> list[list[str]]:
    H, W = account.image_size
    parts = ", ".join(f"{name} {short(count)}" for name, count in account.parameters.items() if count)
    return [
        ["config", f"{account.config}, {account.stage}"],
        ["image, latent", f"{H} x {W}, {' x '.join(map(str, account.latent))}"],
        ["parameters", parts],
    ]


def _training(account: "Estimate") -> list[list[str]]:
    rows = []
    for phase in account.phases:
        work = phase.work
        each = f"{short(work.forward)}FLOPs forward, {short(work.backward)}FLOPs backward, a sample"
        steps = "steps unknown" if phase.steps is None else f"{phase.steps} steps"
        rows.append([f"step, {phase.name}", f"{each}; {account.samples} samples; {steps}"])
    memory = account.memory
    shares = {name: count for name, count in asdict(memory).items() if count}
    told = ", ".join(f"{name} {size(count)}" for name, count in shares.items())
    return [*rows, ["training", _length(account)], ["memory", f"{size(memory.total)}: {told}"]]


def _length(account: "Estimate") -> str:
    """The training in operations; of one of minutes, what they buy here."""
    steps, operations = account.steps or 0, account.operations
    if operations is None:
        return f"{account.minutes:g} minutes: how many steps that is depends on the machine and is told by measuring"
    if account.minutes is None:
        return f"{short(operations)}FLOPs"
    bought = f"{steps} steps, {steps * account.samples} samples, {short(operations)}FLOPs"
    return f"{account.minutes:g} minutes, which buy here {bought}"


def _elsewhere(account: "Estimate") -> list[list[str]]:
    from sfumato.estimate.report import equivalents

    if account.operations is None:
        return []
    there = equivalents(account.operations)
    hours, energy = f"{there.h100_hours:.3g} H100 hours at 40 % of its peak", f"{there.h100_kwh:.3g} kWh at 700 W"
    days = f"{there.v100_days:.3g} V100 days, {there.a100_days:.3g} A100 days at the paper's rate"
    return [["elsewhere", f"{days}; {hours}, {energy}"]]


def _here(account: "Estimate") -> list[list[str]]:
    forecast, peak = account.forecast, account.peak or 0.0
    assert forecast is not None
    rows = [["measured on", f"{account.device}; a large matrix product runs at {short(peak)}FLOP/s"]]
    for phase in account.phases:
        assert phase.timing is not None
        rate = account.samples / phase.timing.step
        share = f"{account.utilisation(phase) or 0:.0%} of that peak"
        rows.append([f"step, {phase.name}", f"{phase.timing.step:.3g} s, {rate:.3g} samples/s, {share}"])
    parts = {"steps": forecast.training, "encoding": forecast.encoding, "previews": forecast.previews}
    parts |= {"saving": forecast.saving, "start": forecast.start}
    told = ", ".join(f"{name} {duration(value)}" for name, value in parts.items() if value)
    unknown = "; and the encoding: give --data" if account.stage == "diffusion" and account.images is None else ""
    rows.append(["the training will take", f"{duration(forecast.total)}: {told}{unknown}"])
    rows.append(["and at its peak", f"{size(forecast.peak_memory)} of memory, all of the process"])
    return rows


def _image(image: "SampleCost") -> list[str]:
    took = "" if image.seconds is None else f"{image.seconds:.3g} s"
    return [image.sampler, str(image.steps), str(image.calls), f"{short(image.operations)}FLOPs", took]


def short(count: float) -> str:
    """1234567 -> "1.23 M"; the unit stands last, so that FLOPs may follow."""
    for unit, scale in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:g} "


def size(count: float) -> str:
    """Bytes as MB or GB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """Seconds as s, min, h or days."""
    for unit, scale in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds:.1f} s"
