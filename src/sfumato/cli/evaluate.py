"""`sfumato evaluate`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sfumato.cli.flags import REQUIRED, Form, command, flag
from sfumato.cli.forms import SAMPLES, request_flags, steps_of
from sfumato.cli.machine import Machine
from sfumato.cli.sample_codes import one_scale
from sfumato.pipeline.options import Range

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch

    from sfumato.cards.card import Card
    from sfumato.cards.measure import Measured, Settings
    from sfumato.cards.subject import LabelPolicy, Subject
    from sfumato.data.dataset import Dataset, Progress
    from sfumato.training.workers import Workers


@dataclass(frozen=True, kw_only=True)
class MeasureFlags(Machine):
    """The options of both evaluations: networks, and how real images are read."""

    weights: list[str] | None = flag(
        None, "evaluation", "A network's weights: a folder; for inception a file.", metavar="NAME=PATH"
    )
    sha256: list[str] | None = flag(None, "evaluation", "The expected hash of those weights.", metavar="NAME=HEX")
    resize: str | None = flag(
        None, "evaluation", "Resize filter: bicubic, bilinear, tensorflow [default: the network's]."
    )
    pad: bool = flag(False, "data", "Pad real images to the frame instead of cropping.", names=("--pad",))
    background: str = flag("white", "data", "Colour behind transparent images.")


def data_flag() -> Any:
    """The real images that are measured against."""
    text = "The folder of real images; toy or toy:held-out for the toy world."
    return flag(REQUIRED, "what to sample", text, metavar="DATA", argument=True, path=True)


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags(MeasureFlags):
    """The options of `sfumato evaluate` beside those of a request."""

    subject: Path = flag(
        REQUIRED, "what to sample", "A model, or a folder of images.", metavar="MODEL_OR_FOLDER", argument=True
    )
    data: str = data_flag()
    out: Path = flag(REQUIRED, "output", "The folder for card.json and index.html.")
    n: int = flag(5000, "evaluation", "Images to evaluate.", Range(2, SAMPLES, whole=True))
    metrics: str = flag(
        "fd,kd,prdc", "evaluation", "fd, fd-inf, sfd, kd, is, prdc, cas, clip-score, reader, fid, kid; fd-dinov2, ..."
    )
    features: str = flag(
        "efficientnet-lite0",
        "evaluation",
        "Default network of the metrics: efficientnet-lite0, inception, dinov2, clip.",
    )
    reference: int | None = flag(None, "data", "Real images to use [default: all].", Range(2, SAMPLES, whole=True))
    bootstrap: int = flag(
        0, "evaluation", "Resamples for the intervals of fd and fd-inf.", Range(0, 1_000_000, whole=True)
    )
    labels: str = flag(
        "data",
        "evaluation",
        "Labels for class-conditional models: data (its distribution) or balanced.",
    )
    cache: Path | None = flag(None, "machine", "Cache folder for features of DATA [default: ~/.cache/sfumato].")


STEPS = Form(
    metavar="N[,N...]",
    type=str,
    parse=steps_of,
    help="Sampling steps [default: 20, a student's 4].",
    hint="Several, as in 4,1,2,8, are all measured; the first is compared.",
)


@command(
    EvaluateFlags,
    request_flags("sampler", "steps", "eta", "guidance", "seed", "size", "batch", forms={"steps": STEPS}, batch=32),
)
def evaluate(flags: EvaluateFlags, options: dict[str, Any]) -> None:
    """Measure samples, or a folder, against real images.

    Writes OUT/card.json and OUT/index.html: the metrics with their protocol, samples, and nearest neighbours.
    """
    from sfumato.cards.card import PAGE_FILE
    from sfumato.cards.measure import Settings, measure
    from sfumato.cards.page import page
    from sfumato.cards.plan import parse_metrics
    from sfumato.checkpoint import write_text
    from sfumato.cli.networks import cache_folder, loaded_clip, loaded_networks
    from sfumato.cli.options import chosen_device, enough_memory, out_folder
    from sfumato.cli.progress import bars
    from sfumato.outputs import one_set_of_files
    from sfumato.training.workers import use_all_cores

    requested = parse_metrics(flags.metrics.split(","), flags.features)
    sampling = _sampling(flags, options)
    use_all_cores()
    device = chosen_device(flags.device)
    workers = connected(flags.subject, device)
    if workers is not None:
        device = workers.device
    folder = out_folder(flags.out)
    names = [one.network for one in requested if one.network is not None]
    networks = loaded_networks(names, flags.weights, flags.sha256, flags.resize, device)
    with bars(active=workers is None or workers.leads) as (_, progress):
        frame = Frame(options["size"], flags.pad, flags.background)
        evaluation = open_subject(flags.subject, flags.data, flags.n, frame, sampling, device, progress("scanning"))
        if workers is not None:
            evaluation = shared(evaluation, workers)
            if not workers.leads:
                sample_for_others(evaluation, options["batch"], workers)
                return
        with_clip = any(one.kind == "clip-score" for one in requested)
        settings = Settings(
            metrics=requested,
            networks=networks,
            clip=loaded_clip(networks, flags.weights) if with_clip else None,
            batch=options["batch"],
            reference=flags.reference,
            resamples=flags.bootstrap,
            cache=cache_folder(flags.cache),
        )
        with evaluation.computing, enough_memory(settings.batch):
            result = measure(evaluation.subject, evaluation.dataset, settings, progress)
            others = {
                steps: measure(subject, evaluation.dataset, settings, progress)
                for steps, subject in evaluation.at_steps.items()
            }
    card = build_card(evaluation, flags.data, settings, result, flags.labels, device)
    card = card.model_copy(update={"at_steps": {str(steps): other.metrics for steps, other in others.items()}})
    shown = {card.sampling.get("steps", 0): result.samples} | {n: other.samples for n, other in others.items()}
    with one_set_of_files(folder):
        card.save(folder)
        write_text(folder / PAGE_FILE, page(card, result.samples, result.captions, result.closest, shown))
    print_card(card, folder)
    if workers is not None:
        workers.close()


def connected(subject: Path, device: "torch.device") -> "Workers | None":
    """The processes that sample, where a launcher started several. Raises UserError for a folder of images."""
    from sfumato.cli.sample_shared import own_share
    from sfumato.errors import UserError
    from sfumato.training.workers import Workers

    if own_share().world == 1:
        return None
    if subject.is_dir() and not (subject / "config.yaml").exists():
        raise UserError(
            f"{str(subject)!r} is a folder of images, which one process evaluates: start it without torchrun"
        )
    return Workers("cpu" if device.type == "cpu" else None)


def shared(evaluation: "Evaluation", workers: "Workers") -> "Evaluation":
    """The evaluation whose samples all processes make, each some of the batches."""
    from sfumato.cards.shared import SharedSubject
    from sfumato.cards.subject import ModelSubject

    def gather(images: "torch.Tensor") -> "torch.Tensor":
        return workers.gather(images.to(workers.device)).cpu()

    def of(subject: "Subject") -> SharedSubject:
        assert isinstance(subject, ModelSubject)
        return SharedSubject(subject, workers.rank, workers.world, gather)

    others = {steps: of(subject) for steps, subject in evaluation.at_steps.items()}
    return replace(evaluation, subject=of(evaluation.subject), at_steps=others)


def sample_for_others(evaluation: "Evaluation", batch: int, workers: "Workers") -> None:
    """Makes this process's part of the samples; the first process measures them."""
    from sfumato.cli.options import enough_memory

    with evaluation.computing, enough_memory(batch):
        for subject in (evaluation.subject, *evaluation.at_steps.values()):
            for _ in subject.batches(batch):
                pass
    workers.close()


def _sampling(flags: EvaluateFlags, options: dict[str, Any]) -> "SamplingOptions":
    """How the model's images are sampled, checked. Raises UserError."""
    from sfumato.pipeline.choices import check_names
    from sfumato.pipeline.request import SampleRequest

    check_names(SampleRequest(**options | {"count": 1, "steps": None}))
    guidance = one_scale("--guidance", options["guidance"])
    how = {name: options[name] for name in ("sampler", "steps", "eta", "seed")}
    return SamplingOptions(**how, guidance=guidance, labels=_policy(flags.labels), precision=flags.precision)


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
    steps: list[int] | None
    eta: float | None
    guidance: float | None
    seed: int
    labels: "LabelPolicy"
    precision: str


@dataclass(frozen=True)
class Evaluation:
    """The subject and the reference, at which size (H, W), the autocast context of the model, and the same subject at
    further numbers of steps."""

    subject: "Subject"
    dataset: "Dataset"
    size: tuple[int, int]
    computing: "AbstractContextManager[object]"
    at_steps: "Mapping[int, Subject]" = field(default_factory=dict)


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
    from sfumato.pipeline.students import check_scales, default_steps

    sampler = named_sampler(sampling.sampler, sampling.eta)
    computing = chosen_autocast(device, sampling.precision)
    model = load(path, device)
    size = frame.size or model.config.image_size
    dataset = opened_data(data, size, frame.pad, frame.background, model, scanning)
    conditions = sample_conditions(model, dataset, n, sampling.labels)
    conditioned = conditions.text is not None or conditions.label is not None
    scale = guidance_scale(source_of(model), sampling.guidance, conditioned)
    check_scales(second_stage(model), [scale])

    def subject(steps: int) -> ModelSubject:
        choice = chosen(second_stage(model), sampler, None, steps, scale)
        config = choice.sampler
        options = {"steps": steps, "sampler": config, "grid": choice.grid, "guidance": scale, "size": size}
        facts = {
            **{"sampler" if key == "kind" else key: value for key, value in config.model_dump().items()},
            "grid": choice.grid.kind,
            "steps": steps,
            "guidance": scale,
            "guidance_chosen_by": "default" if sampling.guidance is None else "hand",
            "precision": "bfloat16" if computing._enabled else "float32",
            "device": device.type,
        }
        return ModelSubject(model, str(path), n, conditions, sampling.seed, options, facts)

    counts = sampling.steps or [default_steps(second_stage(model).config)]
    first, *others = [(steps, subject(steps)) for steps in counts]
    return Evaluation(first[1], dataset, size, made_fast(model, computing), dict(others))


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
    rows += [
        [f"{name}, {steps} step{'s' if steps != '1' else ''}", with_spread(metric), metric.better or ""]
        for steps, metrics in card.at_steps.items()
        for name, metric in metrics.items()
    ]
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
