"""`sfumato evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.arguments import MaybePath
from sfumato.cli.options import BatchOption, DeviceOption, PrecisionOption, SizeOption

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch

    from sfumato.cards.card import Card
    from sfumato.cards.measure import Measured, Settings
    from sfumato.cards.subject import LabelPolicy, Subject
    from sfumato.data.dataset import Dataset, Progress

DataArgument = Annotated[
    str,
    typer.Argument(metavar="DATA", help="The folder of real images; toy or toy:held-out for the toy world."),
    MaybePath(),
]
OutOption = Annotated[Path, typer.Option("--out", help="The folder for card.json and index.html.")]
MetricsOption = Annotated[
    str,
    typer.Option("--metrics", help="fd, fd-inf, sfd, kd, is, prdc, cas, clip-score, reader, fid, kid; fd-dinov2, ..."),
]
FeaturesOption = Annotated[
    str,
    typer.Option("--features", help="Default network of the metrics: efficientnet-lite0, inception, dinov2, clip."),
]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option("--weights", metavar="NAME=PATH", help="A network's weights: a folder; for inception a file."),
]
HashOption = Annotated[
    list[str] | None, typer.Option("--sha256", metavar="NAME=HEX", help="The expected hash of those weights.")
]
ResizeOption = Annotated[
    str | None,
    typer.Option("--resize", help="Resize filter: bicubic, bilinear, tensorflow [default: the network's]."),
]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="Cache folder for features of DATA [default: ~/.cache/sfumato].")
]


def evaluate(
    subject: Annotated[Path, typer.Argument(metavar="MODEL_OR_FOLDER", help="A model, or a folder of images.")],
    data: DataArgument,
    out: OutOption,
    n: Annotated[int, typer.Option("--n", help="Images to evaluate.")] = 5000,
    metrics: MetricsOption = "fd,kd,prdc",
    features: FeaturesOption = "efficientnet-lite0",
    weights: WeightsOption = None,
    sha256: HashOption = None,
    resize: ResizeOption = None,
    reference: Annotated[int | None, typer.Option("--reference", help="Real images to use [default: all].")] = None,
    bootstrap: Annotated[int, typer.Option("--bootstrap", help="Resamples for the intervals of fd and fd-inf.")] = 0,
    labels: Annotated[
        str, typer.Option("--labels", help="Labels for class-conditional models: data (its distribution) or balanced.")
    ] = "data",
    sampler: Annotated[str, typer.Option("--sampler", help="auto, or one that `sfumato samplers` lists.")] = "auto",
    steps: Annotated[int, typer.Option("--steps", help="Steps of the sampler.")] = 20,
    eta: Annotated[float | None, typer.Option("--eta", help="Fresh noise of ddim and dpmpp-2m-sde.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="1 is off [default: 3].")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the first sample; sample i uses seed + i.")] = 0,
    size: SizeOption = None,
    pad: Annotated[bool, typer.Option("--pad", help="Pad real images to the frame instead of cropping.")] = False,
    background: Annotated[str, typer.Option("--background", help="Behind transparent images.")] = "white",
    batch: BatchOption = 32,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    cache: CacheOption = None,
) -> None:
    """Measure a model's samples, or a folder of images, against real images.

    Writes OUT/card.json and OUT/index.html: the numbers with everything they depend on, samples, nearest neighbours.
    """
    from sfumato.cards.card import PAGE_FILE
    from sfumato.cards.measure import Settings, measure
    from sfumato.cards.page import page
    from sfumato.cards.plan import parse_metrics
    from sfumato.checkpoint import write_text
    from sfumato.cli.networks import cache_folder, loaded_clip, loaded_networks
    from sfumato.cli.options import (
        LARGEST_SEED,
        MOST_AT_ONCE,
        MOST_IMAGES,
        MOST_RESAMPLES,
        at_least,
        chosen_device,
        enough_memory,
        out_folder,
        parse_size,
    )
    from sfumato.cli.progress import bars
    from sfumato.outputs import one_set_of_files
    from sfumato.pipeline.choices import check_names
    from sfumato.pipeline.request import SampleRequest
    from sfumato.training.workers import use_all_cores

    requested = parse_metrics(metrics.split(","), features)
    check_names(SampleRequest(sampler=sampler, eta=eta, steps=steps, guidance=guidance, seed=seed, batch=batch))
    at_least("--n", n, 2, MOST_IMAGES)
    at_least("--batch", batch, 1, MOST_AT_ONCE)
    at_least("--bootstrap", bootstrap, 0, MOST_RESAMPLES)
    at_least("--reference", 2 if reference is None else reference, 2, MOST_IMAGES)
    at_least("--seed", seed, 0, LARGEST_SEED)
    use_all_cores()
    place = chosen_device(device)
    sampling = SamplingOptions(sampler, steps, eta, guidance, seed, _policy(labels), precision)
    folder = out_folder(out)
    names = [one.network for one in requested if one.network is not None]
    networks = loaded_networks(names, weights, sha256, resize, place)
    with bars() as (_, progress):
        frame = Frame(parse_size(size), pad, background)
        evaluation = open_subject(subject, data, n, frame, sampling, place, progress("scanning"))
        settings = Settings(
            metrics=requested,
            networks=networks,
            clip=loaded_clip(networks, weights) if any(one.kind == "clip-score" for one in requested) else None,
            batch=batch,
            reference=reference,
            resamples=bootstrap,
            cache=cache_folder(cache),
        )
        with evaluation.computing, enough_memory(batch):
            result = measure(evaluation.subject, evaluation.dataset, settings, progress)
    card = build_card(evaluation, data, settings, result, labels, place)
    with one_set_of_files(folder):
        card.save(folder)
        write_text(folder / PAGE_FILE, page(card, result.samples, result.captions, result.closest))
    print_card(card, folder)


@dataclass(frozen=True)
class Frame:
    """How images are brought to one size; None: the model's, or that of the images."""

    size: tuple[int, int] | None
    pad: bool
    background: str


@dataclass(frozen=True)
class SamplingOptions:
    """How a model's images are sampled."""

    sampler: str
    steps: int
    eta: float | None
    guidance: float | None
    seed: int
    labels: "LabelPolicy"
    precision: str


@dataclass(frozen=True)
class Evaluation:
    """What is measured, against what, at which size (H, W), and the autocast context of the model."""

    subject: "Subject"
    dataset: "Dataset"
    size: tuple[int, int]
    computing: "AbstractContextManager[object]"


def open_subject(
    path: Path, data: str, n: int, frame: Frame, sampling: SamplingOptions, device: "torch.device", scanning: "Progress"
) -> Evaluation:
    """Opens a model if the path is a model's or a run's folder, else the images in it; and the data at their size."""
    from contextlib import nullcontext

    from sfumato.cards.subject import FolderSubject
    from sfumato.cli.real_images import opened_data, opened_folder, own_size

    if (path / "config.yaml").exists() or not path.is_dir():
        return _open_model(path, data, n, frame, sampling, device, scanning)
    size = frame.size or own_size(path)
    images = opened_folder(path, size, frame.pad, frame.background)
    dataset = opened_data(data, size, frame.pad, frame.background, None, scanning)
    return Evaluation(FolderSubject(images, min(n, len(images))), dataset, size, nullcontext())


def _open_model(
    path: Path, data: str, n: int, frame: Frame, sampling: SamplingOptions, device: "torch.device", scanning: "Progress"
) -> Evaluation:
    from sfumato.cards.subject import ModelSubject, sample_conditions
    from sfumato.cli.options import chosen_autocast, made_fast
    from sfumato.cli.real_images import opened_data
    from sfumato.model_folder import load
    from sfumato.pipeline.choices import chosen, named_sampler
    from sfumato.pipeline.conditions import source_of
    from sfumato.pipeline.parts import second_stage
    from sfumato.pipeline.plan import guidance_scale

    sampler = named_sampler(sampling.sampler, sampling.eta)
    computing = chosen_autocast(device, sampling.precision)
    model = load(path, device)
    size = frame.size or model.config.image_size
    dataset = opened_data(data, size, frame.pad, frame.background, model, scanning)
    conditions = sample_conditions(model, dataset, n, sampling.labels)
    conditioned = conditions.text is not None or conditions.label is not None
    scale = guidance_scale(source_of(model), sampling.guidance, conditioned)
    choice = chosen(second_stage(model), sampler, None, sampling.steps, scale)
    config = choice.sampler
    options = {"steps": sampling.steps, "sampler": config, "grid": choice.grid, "guidance": scale, "size": size}
    facts = {
        **{"sampler" if key == "kind" else key: value for key, value in config.model_dump().items()},
        "grid": choice.grid.kind,
        "steps": sampling.steps,
        "guidance": scale,
        "precision": "bfloat16" if computing._enabled else "float32",
        "device": device.type,
    }
    subject = ModelSubject(model, str(path), n, conditions, sampling.seed, options, facts)
    return Evaluation(subject, dataset, size, made_fast(model, computing))


def build_card(
    evaluation: Evaluation, data: str, settings: "Settings", result: "Measured", labels: str, device: "torch.device"
) -> "Card":
    """The card of an evaluation."""
    from sfumato.cards.card import new_card
    from sfumato.cards.measure import protocol_of

    of_model = evaluation.subject.describe()["kind"] == "model"
    policy = labels if of_model and result.labels else "none" if not result.labels else "as they are"
    return new_card(
        "samples",
        device,
        subject=evaluation.subject.describe(),
        data={"path": data, "images": len(evaluation.dataset)},
        protocol=protocol_of(evaluation.dataset, result.count, settings.reference, evaluation.size, policy),
        sampling=evaluation.subject.sampling(),
        metrics=result.metrics,
        labels=result.labels,
        memorisation=result.memorisation,
        warnings=result.warnings,
        seconds=result.seconds,
    )


def print_card(card: "Card", folder: Path | None) -> None:
    """Prints the metrics, and the warnings on stderr."""
    from sfumato.cards.card import PAGE_FILE
    from sfumato.cards.page import with_spread
    from sfumato.cli.tables import show
    from sfumato.report.format import value as formatted

    for warning in card.warnings:
        typer.echo(f"warning: {warning}", err=True)
    rows = [[name, with_spread(metric), metric.better or ""] for name, metric in card.metrics.items()]
    rows += [[name.replace("_", " "), formatted(value), ""] for name, value in card.details.items()]
    if card.memorisation is not None:
        rows.append(["authenticity", f"{card.memorisation['authenticity']:.4f}", ""])
    show(["metric", "value", "better"], rows)
    if folder is not None:
        typer.echo(f"card: {folder / PAGE_FILE}")


def _policy(labels: str) -> "LabelPolicy":
    from sfumato.errors import UserError

    if labels not in ("data", "balanced"):
        raise UserError(f"--labels {labels!r} is not one of data, balanced")
    return labels  # type: ignore[return-value]  # one of the two
