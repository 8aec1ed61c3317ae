"""The conditions of a run: fields added to its data, what is encoded for them, and their record in config.yaml."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.conditioning.metadata import (
    ConditioningMetadata,
    LayoutInput,
    LowResolutionInput,
    MapInput,
    MaskInput,
    standard_palette,
)
from sfumato.counts import how_many
from sfumato.data.conditions.boxes import FolderBoxes
from sfumato.data.conditions.captions import with_sampled_captions
from sfumato.data.conditions.config import ConditionsConfig
from sfumato.data.conditions.crops import CropBoxes, RandomCrops
from sfumato.data.conditions.latents import LatentsWithConditions, LowResolution, MaskedLatents, Sampled, placed
from sfumato.data.conditions.maps import FolderMaps
from sfumato.data.conditions.masked import Holes, MaskedImages
from sfumato.data.conditions.with_fields import FieldSource, ToyBoxes, WithFields
from sfumato.data.dataset import (
    Dataset,
    Example,
    LatentExample,
    LatentSource,
    Progress,
    UnreadableImage,
    buckets_of,
)
from sfumato.data.folder_config import FolderConfig
from sfumato.data.image_dataset import ImageDataset
from sfumato.data.latents import LatentDataset
from sfumato.data.loader import collate, to_unit
from sfumato.data.table import DataConfig, files_root
from sfumato.data.toyworld.dataset import ToyWorldConfig
from sfumato.data.toyworld.render import MAP_NAMES
from sfumato.engine.precision import Precision
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.rng import derive
from sfumato.training.encode import cached_latents
from sfumato.training.workers import Workers


def data_config_for(config: DataConfig, conditions: ConditionsConfig) -> DataConfig:
    """The data's configuration adapted to the conditions: fields of the toy world, condition files left out of a
    folder."""
    if isinstance(config, ToyWorldConfig):
        needed = [name for name, part in (("map", conditions.map), ("boxes", conditions.boxes)) if part is not None]
        return config.model_copy(update={"fields": tuple(dict.fromkeys((*config.fields, *needed)))})
    if not isinstance(config, FolderConfig):
        return config
    return config.model_copy(update={"leave_out": (*config.leave_out, *conditions.folders, *conditions.files)})


def with_fields(
    dataset: Dataset, conditions: ConditionsConfig
) -> tuple[Dataset, ConditioningMetadata, tuple[str, ...]]:
    """The dataset with its maps and boxes, what a model of it is conditioned on, and sentences for the user.

    Those of a folder are read from its files, the toy world generates them. Raises UserError if maps or boxes are
    missing or wrong.
    """
    if isinstance(dataset, ImageDataset):
        return _folder_with_fields(dataset, conditions)
    if conditions.crop is not None:
        raise UserError("conditions.crop needs images that are cropped, which the toy world's are not: leave it out")
    complete = WithFields(dataset, [ToyBoxes(dataset)]) if conditions.boxes is not None else dataset
    return complete, _toy_metadata(conditions), ()


def _toy_metadata(conditions: ConditionsConfig) -> ConditioningMetadata:
    return _random_metadata(conditions).model_copy(
        update={
            "map": None
            if conditions.map is None
            else MapInput(names=MAP_NAMES, palette=standard_palette(len(MAP_NAMES)), void=conditions.map.void),
            "layout": None if conditions.boxes is None else LayoutInput(names=MAP_NAMES),
        }
    )


def _folder_with_fields(
    folder: ImageDataset, conditions: ConditionsConfig
) -> tuple[Dataset, ConditioningMetadata, tuple[str, ...]]:
    sources: list[FieldSource] = []
    notes: tuple[str, ...] = ()
    metadata = _random_metadata(conditions)
    if conditions.map is not None:
        maps = FolderMaps(folder, conditions.map)
        sources.append(maps)
        metadata = metadata.model_copy(update={"map": maps.describe()})
        notes += (
            f"{how_many(len(maps.classes.names), 'class', 'classes')} of {folder.scan.root / conditions.map.classes}",
        )
    if conditions.crop is not None:
        sources.append(CropBoxes(folder))
    if conditions.boxes is not None:
        boxes = FolderBoxes(folder, conditions.boxes)
        sources.append(boxes)
        metadata = metadata.model_copy(update={"layout": boxes.describe()})
        notes += boxes.notes
    return (WithFields(folder, sources) if sources else folder), metadata, notes


def _random_metadata(conditions: ConditionsConfig) -> ConditioningMetadata:
    small, mask = conditions.low_resolution, conditions.mask
    return ConditioningMetadata(
        low_resolution=None
        if small is None
        else LowResolutionInput(factor=small.factor, degradation=small.degradation),
        mask=None if mask is None else MaskInput(fill=mask.fill),
    )


def with_crops(dataset: Dataset, conditions: ConditionsConfig) -> Dataset:
    """The images that are encoded: several random crops of each, if their places are a condition."""
    return dataset if conditions.crop is None else RandomCrops(dataset, conditions.crop.variants)


def with_conditions(
    latents: LatentDataset,
    dataset: Dataset,
    first: LatentDiffusion,
    data: DataConfig,
    conditions: ConditionsConfig,
    cache: Path,
    precision: Precision = "auto",
    progress: Progress | None = None,
    workers: Workers | None = None,
    log: Callable[[str], None] | None = None,
) -> LatentSource:
    """The data of the loop of stage 2: the latents and the fields that are sampled for each.

    For inpainting, the masked images are encoded first and cached like the others, so that the encoder never runs in
    the loop; low-resolution images are computed at each reading. `dataset` holds the images of the latents, row by row.
    """
    sampled: list[Sampled] = []
    if conditions.low_resolution is not None:
        sampled.append(LowResolution(dataset, conditions.low_resolution, _latent_size(latents)))
    if conditions.mask is not None:
        masked = _masked(dataset, first, data, conditions)
        encoded = cached_latents(
            first,
            masked,
            cache,
            latents.header.mirrored,
            precision=precision,
            progress=progress,
            workers=workers,
            log=log,
        )
        sampled.append(MaskedLatents(encoded, conditions.mask.variants, MaskInput(fill=conditions.mask.fill)))
    source = LatentsWithConditions(latents, sampled) if conditions.gives else latents
    return with_sampled_captions(source, dataset)


def preview_fields(
    dataset: Dataset, count: int, first: LatentDiffusion, data: DataConfig, conditions: ConditionsConfig
) -> tuple[dict[str, Any], torch.Tensor]:
    """A batch's fields for the first `count` images, always the same; and the images, (n, 3, H, W) in [-1, 1].

    Of images of several sizes those of the commonest one.
    Raises UserError if none can be read.
    """
    rows, examples = _readable(dataset, count)
    images = torch.stack([to_unit(example.image) for example in examples])
    buckets = buckets_of(dataset)
    size = (images.shape[2], images.shape[3]) if buckets is None else buckets.sizes[0]
    latent_size = first.latent_shape_of(size)[1:]
    fields = [placed(example.fields, False) for example in examples]
    if conditions.low_resolution is not None:
        small = LowResolution(dataset, conditions.low_resolution, latent_size)
        fields = [f | small(row, derive(0, "preview", row), False) for row, f in zip(rows, fields, strict=True)]
    if conditions.mask is not None:
        masked = _masked(dataset, first, data, conditions)
        values = MaskInput(fill=conditions.mask.fill)
        for row, f in zip(rows, fields, strict=True):
            example = masked[row * conditions.mask.variants]
            with torch.no_grad():
                moments = first.autoencoder.encode(to_unit(example.image)[None].to(first.device)).moments
                f["masked_latent"] = first.autoencoder.latent_from_moments(moments)[0].float().cpu()
            f["mask"] = torch.where(example.fields["mask"] > 0, values.hole, values.keep)
    batch = collate(0, rows, [LatentExample(torch.zeros(1, 1, 1), f) for f in fields])
    return batch.fields, images


def _readable(dataset: Dataset, count: int) -> tuple[list[int], list[Example]]:
    rows: list[int] = []
    examples: list[Example] = []
    buckets = buckets_of(dataset)
    shown = range(len(dataset)) if buckets is None else np.flatnonzero(buckets.rows == np.argmax(buckets.counts))
    for row in map(int, shown):
        try:
            examples.append(dataset[row])
            rows.append(row)
        except UnreadableImage:
            continue
        if len(rows) == count:
            break
    if not rows:
        raise UserError(f"none of the {len(dataset)} held-out images can be read: check the data folder")
    return rows, examples


def _latent_size(latents: LatentDataset) -> tuple[int, int]:
    return latents.header.shape[1], latents.header.shape[2]


def _masked(dataset: Dataset, first: LatentDiffusion, data: DataConfig, conditions: ConditionsConfig) -> MaskedImages:
    assert conditions.mask is not None
    size = (data.size, data.size) if isinstance(data.size, int) else data.size
    root, buckets = None if isinstance(data, ToyWorldConfig) else files_root(data), buckets_of(dataset)
    further = () if buckets is None else buckets.sizes
    return MaskedImages(dataset, Holes(conditions.mask, size, root, further), first.autoencoder.factor)
