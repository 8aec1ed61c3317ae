"""`sfumato estimate`."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from sfumato.cli.flags import REQUIRED, command, flag
from sfumato.cli.machine import Device
from sfumato.pipeline.options import Range
from sfumato.plain_json import to_json

if TYPE_CHECKING:
    from sfumato.data.conditions.config import ConditionsConfig
    from sfumato.data.table import DataConfig
    from sfumato.estimate.from_config import MeasurementOptions
    from sfumato.estimate.report import Estimate, SampleCost
    from sfumato.model import LatentDiffusion
    from sfumato.training.autoencoder_run import AutoencoderRun
    from sfumato.training.diffusion_run import DiffusionRun

Run = TypeVar("Run", "AutoencoderRun", "DiffusionRun")
PLACEHOLDER = Path("a-folder-of-images")


@dataclass(frozen=True, kw_only=True)
class EstimateFlags(Device):
    """The options of `sfumato estimate`."""

    config: str = flag(
        REQUIRED,
        "what to sample",
        "A YAML file, or a zoo name such as zoo:toy/text.",
        metavar="CONFIG",
        argument=True,
        path=True,
    )
    overrides: list[str] | None = flag(
        None, "what to sample", "Settings to change, such as train.steps=2000.", metavar="[a.b=c]...", argument=True
    )
    autoencoder: str | None = flag(
        None,
        "what to sample",
        "For stage 2: a run, a model folder, a stage 1 configuration, or pixels.",
        path=True,
    )
    data: str | None = flag(
        None, "what to sample", "The images; the estimate uses their number and the time to read them.", metavar="PLACE"
    )
    measure: bool = flag(
        True, "machine", "Time a few steps here and forecast the training.", names=("--measure/--no-measure",)
    )
    steps: int = flag(6, "machine", "How many steps of each kind are timed.", Range(1, 10_000, whole=True))
    sampling_steps: int = flag(20, "sampler", "Sampling steps of the images.", Range(1, 100_000, whole=True))
    processes: int = flag(
        1, "machine", "Processes of the training; train.batch counts for each of them.", Range(1, 4096, whole=True)
    )
    a_host: int = flag(8, "machine", "GPUs of a host.", Range(1, 64, whole=True), names=("--gpus-a-host",))
    network: float = flag(100.0, "machine", "Gbit/s between two hosts.", Range(0.1, 10_000))
    as_json: bool = flag(False, "output", "Print JSON.", names=("--json",))


@command(EstimateFlags)
def estimate(flags: EstimateFlags) -> None:
    """Estimate the cost of a training.

    Prints operations, parameters, memory, time and energy of a training with CONFIG, and of an image with every
    sampler.
    """
    from sfumato.cli.options import chosen_device
    from sfumato.cli.run_configuration import check_given_once, with_overrides
    from sfumato.config import read_source
    from sfumato.errors import UserError
    from sfumato.training.autoencoder_run import AutoencoderRun
    from sfumato.training.diffusion_run import DiffusionRun
    from sfumato.training.workers import use_all_cores

    use_all_cores()
    place = chosen_device(flags.device).type
    timed = Timed(place, flags.steps) if flags.measure else None
    described = read_source(flags.config)
    if "coupling" in described:
        raise UserError(
            f"config {flags.config!r} trains both stages at once, which is not forecast: give the configurations of "
            "two stages, or run `sfumato train joint` for a minute (train.minutes=1), which shows its rate"
        )
    schema = DiffusionRun if "denoiser" in described else AutoencoderRun
    check_given_once(flags.overrides or [], {"data.path": ("--data", flags.data)})
    raw = with_overrides(flags.config, flags.overrides or [], schema)
    if "denoiser" in raw:
        estimated = _second_stage(
            raw,
            flags.config,
            first_stage_of(flags.autoencoder, flags.config, raw),
            flags.data,
            flags.sampling_steps,
            timed,
        )
    elif "model" in raw:
        if flags.autoencoder is not None:
            raise UserError(f"--autoencoder belongs to stage 2, and {flags.config!r} describes stage 1: leave it out")
        estimated = _first_stage(raw, flags.config, flags.data, timed)
    else:
        raise UserError(f"config {flags.config!r} describes no training: it has neither a model nor a denoiser section")
    several = in_processes(estimated, flags.processes, flags.a_host, flags.network)
    if flags.as_json:
        typer.echo(to_json(facts(estimated) | ({} if several is None else {"processes": several}), indent=2))
    else:
        print_estimate(estimated)
        if several is not None:
            print_processes(estimated, several)


@dataclass(frozen=True)
class Timed:
    """How times are taken."""

    device: str
    steps: int


def _first_stage(raw: dict[str, Any], name: str, data: str | Path | None, timed: Timed | None) -> "Estimate":
    from sfumato.estimate import from_config
    from sfumato.training.autoencoder_run import AutoencoderRun

    run = parsed(raw, data, AutoencoderRun, name, None)
    estimated = from_config.first_stage(run, name)
    if timed is None:
        return estimated
    options, images = _means(run.data, timed)
    return replace(from_config.measured_first_stage(estimated, run, options), images=images)


def _second_stage(
    raw: dict[str, Any],
    name: str,
    first: "LatentDiffusion",
    data: str | Path | None,
    sampling_steps: int,
    timed: Timed | None,
) -> "Estimate":
    from sfumato.estimate import from_config
    from sfumato.training.data import height_width
    from sfumato.training.diffusion_run import DiffusionRun

    run = parsed(raw, data, DiffusionRun, name, first.config.image_size)
    theirs = first.config.model_copy(update={"image_size": height_width(run.data)})
    first = replace(first, config=theirs)  # its images may have another size than those of stage 1
    estimated = from_config.second_stage(run, first, name, sampling_steps)
    read = [name for name in ("map", "boxes") if getattr(run.conditions, name) is not None]
    if timed is not None and read and is_placeholder(run.data):
        described = (
            f"no times, for conditions.{' and conditions.'.join(read)} cannot be synthesised: give the images by --data"
        )
        typer.echo(f"{described}; operations, parameters and memory follow", err=True)
        timed = None
    if timed is None:
        return estimated
    options, images = _means(run.data, timed, run.conditions)
    return replace(from_config.measured_second_stage(estimated, run, first, options), images=images)


def parsed(
    raw: dict[str, Any], data: str | Path | None, schema: type[Run], name: str, size: tuple[int, int] | None
) -> Run:
    """The run's configuration; a folder that is not named yet has a placeholder's name."""
    from sfumato.cli.run_configuration import with_data
    from sfumato.config import parse, section
    from sfumato.data.kinds import kind_of
    from sfumato.errors import UserError

    if data is not None and kind_of(str(data)) == "folder" and not Path(data).is_dir():
        raise UserError(f"--data {str(data)!r} is not a folder: give one of images, or leave it out")
    given = section(raw, "data")
    nameless = given.get("kind", "folder") == "folder" and "path" not in given
    return parse(with_data(raw, data or (PLACEHOLDER if nameless else None), size), schema, name)


def is_placeholder(config: "DataConfig") -> bool:
    """Whether it is a folder that is not named yet."""
    return config.kind == "folder" and config.path == PLACEHOLDER


def _means(
    config: "DataConfig", timed: Timed, conditions: "ConditionsConfig | None" = None
) -> tuple["MeasurementOptions", int | None]:
    """Images to measure with, and their number: synthetic images, and no number, if no folder is given."""
    from sfumato.data.conditions.config import ConditionsConfig
    from sfumato.data.table import open_dataset
    from sfumato.estimate.from_config import MeasurementOptions
    from sfumato.estimate.synthetic import SyntheticImages
    from sfumato.training.conditions import data_config_for, with_fields
    from sfumato.training.data import height_width
    from sfumato.training.workers import Workers

    conditions = conditions or ConditionsConfig()
    nameless = is_placeholder(config)
    images = SyntheticImages(height_width(config)) if nameless else open_dataset(data_config_for(config, conditions))
    data, inputs, _ = with_fields(images, conditions)
    workers = Workers("cpu" if timed.device == "cpu" else None)
    return MeasurementOptions(workers, data, timed.steps, inputs), None if nameless else len(data)


def first_stage_of(autoencoder: str | None, config: str, raw: dict[str, Any]) -> "LatentDiffusion":
    """The first stage under a second one, trained or not. Raises UserError where it cannot be described which."""
    from sfumato.config import ZOO_PREFIX, read_source
    from sfumato.model import ModelConfig, build, pixel_space
    from sfumato.model_folder import load
    from sfumato.training.autoencoder_run import AutoencoderRun
    from sfumato.training.data import height_width
    from sfumato.training.diffusion_run import DiffusionRun

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


def facts(estimated: "Estimate") -> dict[str, Any]:
    """The estimate as JSON."""
    from sfumato.estimate.report import equivalents

    described = asdict(estimated)
    for phase, phase_facts in zip(estimated.phases, described["phases"], strict=True):
        phase_facts["work"]["total"] = phase.work.total
        phase_facts["utilisation"] = estimated.utilisation(phase)
    described["memory"]["total"] = estimated.memory.total
    described |= {"steps": estimated.steps, "operations": estimated.operations}
    described["equivalents"] = None if estimated.operations is None else asdict(equivalents(estimated.operations))
    forecast = estimated.forecast
    described["foreseen"] = None if forecast is None else {**asdict(forecast), "total": forecast.total}
    return described


def print_estimate(estimated: "Estimate") -> None:
    """The estimate as tables."""
    from sfumato.cli.tables import show

    show(None, [*_networks(estimated), *_training(estimated), *_elsewhere(estimated)])
    if estimated.forecast is not None:
        typer.echo("")
        show(None, _here(estimated))
    if estimated.sample_costs:
        typer.echo("")
        show(
            ["sampler", "steps", "calls", "operations an image", "time an image"],
            [_image(p) for p in estimated.sample_costs],
        )


def in_processes(estimated: "Estimate", count: int, a_host: int, network: float) -> dict[str, Any] | None:
    """The training in `count` processes on hosts with `a_host` GPUs, `network` Gbit/s between them; None for one.

    A process computes as fast as the paper's A100, see `report.A100`.
    """
    from sfumato.errors import UserError
    from sfumato.estimate import scaling
    from sfumato.estimate.report import A100, equivalents

    if count == 1:
        return None
    if estimated.sizes is None:
        raise UserError("--processes estimates stage 2: leave it out for a first stage")
    sizes, accumulate = estimated.sizes, estimated.accumulate
    processes = scaling.Processes(count, estimated.shard, a_host, network * 1e9 / 8)
    own = estimated.samples * estimated.phases[0].work.total / A100
    one = scaling.scaled(own, sizes.trained, processes, accumulate)
    memory = scaling.memory_of_process(estimated.memory, sizes, processes)
    samples, operations = estimated.samples * count, estimated.operations
    strong = scaling.strong(own * count, sizes.trained, samples, processes)
    return {
        "count": count,
        "hosts": processes.hosts,
        "samples": samples,
        "memory": asdict(memory) | {"total": memory.total},
        "bytes_a_step": scaling.bytes_a_step(sizes.trained, processes, accumulate),
        "exchange_seconds": scaling.exchange_seconds(sizes.trained, processes, accumulate),
        "step_seconds": one.step,
        "efficiency": one.efficiency,
        "days": None if estimated.steps is None else estimated.steps * one.step / 86400,
        "v100_days": None if operations is None else equivalents(operations * count).v100_days,
        "same_batch": [asdict(each) for each in strong],
    }


def print_processes(estimated: "Estimate", several: dict[str, Any]) -> None:
    """The training in several processes, and the same samples a step in more and more of them."""
    from sfumato.cli.tables import show

    memory = several["memory"]
    listed = ", ".join(f"{name} {size(count)}" for name, count in memory.items() if count and name != "total")
    hosts = f"{several['hosts']} host{'s' if several['hosts'] > 1 else ''}"
    sent = f"{size(several['bytes_a_step'])} sent and received by each, {several['exchange_seconds']:.3g} s"
    took = f"{several['step_seconds']:.3g} s on A100s at the paper's rate, {several['efficiency']:.0%} of it computing"
    rows = [
        ["processes", f"{several['count']} on {hosts}, train.shard {estimated.shard}; {several['samples']} samples"],
        ["memory of each", f"{size(memory['total'])}: {listed}"],
        ["exchange a step", sent],
        ["step", took],
    ]
    if several["days"] is not None:
        rows.append(
            ["the training", f"{several['days']:.3g} days; {several['v100_days']:.3g} V100 days in all processes"]
        )
    typer.echo("")
    show(None, rows)
    typer.echo("")
    table = [
        [
            str(each["count"]),
            f"{each['step']:.3g} s",
            f"{several['samples'] / each['step']:.3g}",
            f"{each['efficiency']:.0%}",
        ]
        for each in several["same_batch"]
    ]
    show([f"processes for {several['samples']} samples", "step", "samples/s", "computing"], table)


def _networks(estimated: "Estimate") -> list[list[str]]:
    H, W = estimated.image_size
    parts = ", ".join(f"{name} {short(count)}" for name, count in estimated.parameters.items() if count)
    return [
        ["config", f"{estimated.config}, {estimated.stage}"],
        ["image, latent", f"{H} x {W}, {' x '.join(map(str, estimated.latent))}"],
        ["parameters", parts],
    ]


def _training(estimated: "Estimate") -> list[list[str]]:
    rows = []
    for phase in estimated.phases:
        work = phase.work
        each = f"{short(work.forward)}FLOPs forward, {short(work.backward)}FLOPs backward, a sample"
        steps = "steps unknown" if phase.steps is None else f"{phase.steps} steps"
        rows.append([f"step, {phase.name}", f"{each}; {estimated.samples} samples; {steps}"])
    memory = estimated.memory
    shares = {name: count for name, count in asdict(memory).items() if count}
    listed = ", ".join(f"{name} {size(count)}" for name, count in shares.items())
    return [*rows, ["training", _length(estimated)], ["memory", f"{size(memory.total)}: {listed}"]]


def _length(estimated: "Estimate") -> str:
    """The training in operations; of one of minutes, what they buy here."""
    steps, operations = estimated.steps or 0, estimated.operations
    if operations is None:
        return f"{estimated.minutes:g} minutes; the number of steps depends on the machine: measure it"
    if estimated.minutes is None:
        return f"{short(operations)}FLOPs"
    bought = f"{steps} steps, {steps * estimated.samples} samples, {short(operations)}FLOPs"
    return f"{estimated.minutes:g} minutes: on this machine {bought}"


def _elsewhere(estimated: "Estimate") -> list[list[str]]:
    from sfumato.estimate.report import equivalents

    if estimated.operations is None:
        return []
    there = equivalents(estimated.operations)
    hours, energy = f"{there.h100_hours:.3g} H100 hours at 40 % of its peak", f"{there.h100_kwh:.3g} kWh at 700 W"
    days = f"{there.v100_days:.3g} V100 days, {there.a100_days:.3g} A100 days at the paper's rate"
    return [["elsewhere", f"{days}; {hours}, {energy}"]]


def _here(estimated: "Estimate") -> list[list[str]]:
    forecast, peak = estimated.forecast, estimated.peak or 0.0
    assert forecast is not None
    rows = [["measured on", f"{estimated.device}; a large matrix product runs at {short(peak)}FLOP/s"]]
    for phase in estimated.phases:
        assert phase.timing is not None
        rate = estimated.samples / phase.timing.step
        share = f"{estimated.utilisation(phase) or 0:.0%} of that peak"
        rows.append([f"step, {phase.name}", f"{phase.timing.step:.3g} s, {rate:.3g} samples/s, {share}"])
    parts = {"steps": forecast.training, "encoding": forecast.encoding, "previews": forecast.previews}
    parts |= {"saving": forecast.saving, "start": forecast.start}
    listed = ", ".join(f"{name} {duration(value)}" for name, value in parts.items() if value)
    unknown = "; and the encoding: give --data" if estimated.stage == "diffusion" and estimated.images is None else ""
    rows.append(["the training will take", f"{duration(forecast.total)}: {listed}{unknown}"])
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
