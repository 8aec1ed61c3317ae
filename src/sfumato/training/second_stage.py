"""Building the second stage: tokenizer, conditioner, denoiser, and the scaling of the cached latents."""

from collections.abc import Callable, Sequence

import torch

from sfumato import rng
from sfumato.autoencoder.scaling import Scaling
from sfumato.conditioning.class_label import ClassEmbedder
from sfumato.conditioning.condition import Conditioner, ConditionSpec
from sfumato.conditioning.layout import LayoutConfig
from sfumato.conditioning.lengths import cut_texts
from sfumato.conditioning.metadata import ConditioningMetadata
from sfumato.conditioning.spatial import SemanticConfig, SpatialIdentity, SpatialRescaler
from sfumato.conditioning.table import (
    CompositeConfig,
    ConditionerConfig,
    build_conditioner,
    stored_tokenizer,
    text_config,
)
from sfumato.conditioning.tokenizer import fit_tokenizer
from sfumato.data.conditions.config import GIVEN_BY, ConditionsConfig
from sfumato.data.dataset import Item, Source
from sfumato.data.latents import LatentDataset, MeasuredLatents
from sfumato.data.textfile import shown
from sfumato.denoiser.table import build_denoiser
from sfumato.diffusion.schedule import build_schedule
from sfumato.errors import UserError
from sfumato.model import DiffusionConfig, LatentDiffusion, ModelConfig, SecondStage
from sfumato.training.data import check_step, height_width, trained_sizes
from sfumato.training.diffusion import ConditionalDenoiser
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.encode import measured_scaling
from sfumato.training.start import start_second, started


def check_sizes(config: DiffusionRun, first: LatentDiffusion) -> None:
    """Raises UserError if the image size does not fit the two networks; needs no data."""
    size = height_width(config.data)
    key = "denoiser.patch" if config.denoiser.kind == "dit" else "denoiser.channel_multipliers"
    check_factor(size, config.denoiser.factor, key, first)
    f, levels, small = first.autoencoder.factor, config.denoiser.factor, config.conditions.low_resolution
    if small is not None and (size[0] % small.factor or size[1] % small.factor):
        raise UserError(
            f"data.size {size[0]}x{size[1]} is not a multiple of conditions.low_resolution.factor {small.factor}: "
            "change either"
        )
    try:
        check_step(config.data, f * levels, f"{f * levels}, f = {f} times the {levels} of {key}")
        if small is not None:
            check_step(config.data, small.factor, f"conditions.low_resolution.factor {small.factor}")
    except ValueError as error:
        raise UserError(str(error)) from None


def check_factor(size: tuple[int, int], factor: int, key: str, first: LatentDiffusion) -> None:
    """Raises UserError if latents of images of size (H, W) are not multiples of a factor that `key` sets."""
    _, h, w = first.latent_shape_of(size)
    if h % factor or w % factor:
        raise UserError(
            f"data.size {size[0]}x{size[1]} gives latents of {h}x{w}, not multiples of {factor}, which "
            f"{key} sets: take a multiple of {factor * first.autoencoder.factor}, fewer levels or a smaller patch"
        )


def fitted(config: ConditionerConfig, metadata: ConditioningMetadata) -> ConditionerConfig:
    """The configuration with the data's numbers of classes where they are 0.

    Raises UserError if the data has more, or other, classes than the conditioner.
    """
    match config:
        case CompositeConfig():
            parts = {name: fitted(part, metadata) for name, part in config.parts.items()}
            return config.model_copy(update={"parts": parts})
        case SemanticConfig():
            if metadata.map is not None and config.void != metadata.map.void:
                raise UserError(
                    f"conditioner.void is {config.void}, conditions.map.void {metadata.map.void}: give both the id "
                    "that means no class, or null"
                )
            names = None if metadata.map is None else metadata.map.names
            return config.model_copy(update={"classes": _classes(config.classes, names, "map")})
        case LayoutConfig():
            names = None if metadata.layout is None else metadata.layout.names
            return config.model_copy(update={"classes": _classes(config.classes, names, "boxes")})
        case _:
            return config


def _classes(configured: int, names: Sequence[str] | None, maker: str) -> int:
    """The configured number of classes, or that of the data if it is 0."""
    if names is None:
        if configured == 0:
            raise UserError(
                "conditioner.classes is 0, to follow the data, but the data has no class names: set "
                f"conditions.{maker}={{}}"
            )
        return configured
    if 0 < configured < len(names):
        raise UserError(
            f"the data has {len(names)} classes, the conditioner {configured}: set conditioner.classes={len(names)}, "
            "or 0 to follow the data"
        )
    return configured or len(names)


def build_model(
    config: DiffusionRun,
    first: LatentDiffusion,
    latents: MeasuredLatents,
    fields: Sequence[str] | None = None,
    metadata: ConditioningMetadata | None = None,
    texts: Sequence[str] | None = None,
    blank: bool = False,
) -> LatentDiffusion:
    """The model to train: the given first stage, and a second stage initialised from the run's seed.

    `fields` are those of the training data, by default the latents'; `metadata` describes the data's conditions; a
    tokenizer is fitted on `texts`, by default the latents' captions. `blank`: the second stage takes no memory (meta
    device), for a process that receives its weights from another.
    Raises UserError if the data lacks a field that the conditioner reads, or the two do not fit together.
    """
    return build_around(config, first, latents, lambda: measured_scaling(latents), fields, metadata, texts, blank)


def build_around(
    config: DiffusionRun,
    first: LatentDiffusion,
    source: Source[Item],
    scaling: Callable[[], Scaling],
    fields: Sequence[str] | None = None,
    metadata: ConditioningMetadata | None = None,
    texts: Sequence[str] | None = None,
    blank: bool = False,
) -> LatentDiffusion:
    """As `build_model`, on a source of latents, or of images that are encoded in training; `scaling` is asked for where
    the model does not start from another one."""
    metadata = metadata or ConditioningMetadata()
    chosen = fitted(config.conditioner, metadata)
    before = None if config.start is None else started(config.start)
    stored = None if before is None or before.second is None else stored_tokenizer(before.second.conditioner)
    tokenizer = stored or fitted_tokenizer(chosen, source.captions() if texts is None else texts)
    place = torch.device("meta" if blank else "cpu")
    with place, rng.seeded(config.train.seed, "weights", "diffusion", device=torch.device("cpu")):
        conditioner = build_conditioner(chosen, tokenizer)
        spec = ConditionSpec() if conditioner is None else conditioner.spec
        denoiser = build_denoiser(config.denoiser, first.autoencoder.latent_channels, spec)
    denoiser.checkpointing = config.train.checkpointing
    if conditioner is not None:
        check_fields(conditioner.reads, source.fields if fields is None else fields)
        _check_conditioner(conditioner, config, source.classes)
        _check_spatial(conditioner, first)
    described = ModelConfig(
        autoencoder=first.config.autoencoder,
        image_size=height_width(config.data),
        trained_sizes=trained_sizes(source),
        classes=source.classes,
        classes_seen=classes_seen(conditioner, source),
        conditioning_metadata=metadata,
        diffusion=DiffusionConfig(
            denoiser=config.denoiser,
            conditioner=chosen,
            schedule=config.schedule,
            prediction=config.objective.prediction,
            latents=config.objective.latents,
            condition_dropout=0.0 if conditioner is None else config.train.condition_dropout,
            part_dropout=config.train.part_dropout,
        ),
        about=first.config.about,
    )
    assert described.diffusion is not None
    second = SecondStage(described.diffusion, denoiser, conditioner, build_schedule(config.schedule))
    if before is None:
        return LatentDiffusion(described, first.autoencoder, scaling(), second, first.tiny)
    assert config.start is not None
    if not blank:
        start_second(second, first.autoencoder.latent_channels, before, config.start)
    return LatentDiffusion(described, first.autoencoder, before.scaling, second, first.tiny)


def classes_seen(conditioner: Conditioner | None, source: object) -> tuple[int, ...] | None:
    """The ids of the classes in the training data, if the model reads labels; None if they are not known."""
    if conditioner is None or "label" not in conditioner.reads or not isinstance(source, LatentDataset):
        return None
    return source.labels_seen()


def caption_notes(conditioner: Conditioner | None, texts: Sequence[str] | None) -> tuple[str, ...]:
    """A sentence on captions that are longer than the conditioner reads, if there are any."""
    distinct = list(dict.fromkeys(texts or ()))
    cut = cut_texts(conditioner, distinct)
    if not cut:
        return ()
    longest = max(cut, key=lambda one: one.tokens)
    return (
        f"{len(cut)} of {len(distinct)} captions are longer than max_tokens {longest.limit} and are cut: the longest "
        f"has {longest.tokens} tokens, {shown(longest.text)}; shorten them, or set a larger max_tokens in conditioner",
    )


def conditional_denoiser(model: LatentDiffusion) -> ConditionalDenoiser:
    """Denoiser and conditioner as the loop trains them."""
    assert model.second is not None
    return ConditionalDenoiser(model.second.denoiser, model.second.conditioner)


def fitted_tokenizer(config: ConditionerConfig, captions: Sequence[str] | None) -> str | None:
    """A tokenizer fitted on the captions, if the conditioner needs one."""
    part = text_config(config)
    if part is None or part.tokenizer != "fitted":
        return None
    if captions is None:
        raise UserError(
            "conditioner.kind is text, but the data has no captions: add metadata.jsonl with a text column or "
            ".txt files beside the images, set data.text_from=label, or choose conditioner.kind class or none"
        )
    return fit_tokenizer(captions, part.vocabulary)


def check_fields(reads: Sequence[str], fields: Sequence[str]) -> None:
    """Raises UserError if the data lacks a field that the conditioner reads."""
    missing = [name for name in reads if name not in fields]
    if missing:
        has = ", ".join(fields) or "none"
        makers = [name for name in ConditionsConfig.model_fields if missing[0] in GIVEN_BY[name]]
        way_out = f"set conditions.{makers[0]}={{}}, or choose" if makers else "choose"
        raise UserError(
            f"the conditioner reads {missing[0]!r}, but the data has the fields {has}: {way_out} another conditioner"
        )


def _check_conditioner(conditioner: Conditioner, config: DiffusionRun, classes: Sequence[str] | None) -> None:
    if config.train.condition_dropout > 0 or config.train.part_dropout:
        try:
            conditioner.null(1, (config.denoiser.factor, config.denoiser.factor))
        except ValueError as error:
            raise UserError(f"{error}; or set train.condition_dropout to 0") from None
    for part in conditioner.modules():
        if isinstance(part, ClassEmbedder) and classes is not None and len(classes) > part.config.classes:
            raise UserError(
                f"the data has {len(classes)} classes, the conditioner {part.config.classes}: "
                f"set conditioner.classes={len(classes)}"
            )


def _check_spatial(conditioner: Conditioner, first: LatentDiffusion) -> None:
    """Raises UserError if a map or a masked latent would not fit the latents of this first stage."""
    factor, channels = first.autoencoder.factor, first.autoencoder.latent_channels
    for part in conditioner.modules():
        if isinstance(part, SpatialRescaler) and 2**part.config.stages != factor:
            raise UserError(
                f"conditioner.stages {part.config.stages} shrinks a map by {2**part.config.stages}, but the "
                f"autoencoder's f is {factor}: set conditioner.stages={factor.bit_length() - 1}"
            )
        if not isinstance(part, SpatialIdentity) or part.config.field != "masked_latent":
            continue
        if part.config.channels != channels:
            raise UserError(
                f"the conditioner takes masked latents of {part.config.channels} channels, but the autoencoder's have "
                f"{channels}: set the channels of that part, such as conditioner.parts.masked_image.channels={channels}"
            )
