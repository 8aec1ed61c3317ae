"""Encoding a whole dataset once and caching the posterior moments, so that stage 2 never runs the encoder."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from sfumato.autoencoder.model import encoder_digest
from sfumato.autoencoder.scaling import Scaling
from sfumato.counts import none_of
from sfumato.data.dataset import Buckets, Dataset, Example, Progress, UnreadableImage, blocks_of, buckets_of
from sfumato.data.latent_header import LatentGroup, LatentHeader, tensor_fields
from sfumato.data.latent_writing import LatentWriter
from sfumato.data.latents import LatentDataset, MeasuredLatents
from sfumato.data.loader import sweep
from sfumato.engine.precision import Precision, autocast
from sfumato.errors import UserError
from sfumato.locks import exclusive
from sfumato.model import LatentDiffusion
from sfumato.training.workers import Workers

FILE_BYTES = 2**32
"""Latents beyond this many bytes are split into several files of about this size."""


def cached_latents(
    model: LatentDiffusion,
    dataset: Dataset,
    cache: Path,
    mirrored: bool = False,
    batch: int = 32,
    precision: Precision = "auto",
    progress: Progress | None = None,
    workers: Workers | None = None,
    log: Callable[[str], None] | None = None,
) -> LatentDataset:
    """The latents of a dataset under the model's autoencoder: opened if cached, else encoded, continuing an
    interrupted encoding.

    The cache is keyed by the content of the data and by `encoder_digest`, so that it cannot go stale. `mirrored` adds
    each image's mirror image. The processes of a run share the work; of several runs one encodes and the others wait,
    which is reported to `log`. Raises UserError if no image can be read, or the disk is full.
    """
    workers = workers or Workers()
    header = _header(model, dataset, mirrored)
    path = cache / f"latents-{header.key()}"
    if _missing(path, workers):
        with _only_run(path, workers, log), autocast(model.device, precision):
            if _missing(path, workers):  # else another run has written it meanwhile
                _encode(model, dataset, path, header, batch, progress, workers)
    return LatentDataset(path, header.autoencoder, header.data, blocks_of(dataset))


def _header(model: LatentDiffusion, dataset: Dataset, mirrored: bool) -> LatentHeader:
    """The header of a dataset's cache; with a group of rows for each size of its images, if they have several."""
    buckets, variational = buckets_of(dataset), model.autoencoder.variational

    def shape(size: tuple[int, int]) -> tuple[int, int, int]:
        C, h, w = model.latent_shape_of(size)
        return (2 * C if variational else C, h, w)

    example = _first_readable(dataset, range(len(dataset)))
    if example is None:
        raise UserError(f"{none_of(len(dataset), 'image')} can be read: check the data folder")
    groups = () if buckets is None else tuple(_groups(dataset, buckets, shape))
    size = (example.image.shape[-2], example.image.shape[-1])
    header = LatentHeader(
        autoencoder=encoder_digest(model.autoencoder),
        data=dataset.fingerprint(),
        count=len(dataset),
        shape=groups[0].shape if groups else shape(size),
        variational=variational,
        mirrored=mirrored,
        classes=dataset.classes,
        tensors=tensor_fields(example.fields),
        groups=groups,
    )
    row_bytes = 2 * header.variants * math.prod(header.shape)
    many = row_bytes * len(dataset) > FILE_BYTES
    return header.model_copy(update={"rows_per_file": max(1, FILE_BYTES // row_bytes)}) if many else header


def _groups(
    dataset: Dataset, buckets: Buckets, shape: Callable[[tuple[int, int]], tuple[int, int, int]]
) -> Iterator[LatentGroup]:
    for number, (size, count) in enumerate(zip(buckets.sizes, buckets.counts, strict=True)):
        example = _first_readable(dataset, np.flatnonzero(buckets.rows == number).tolist())
        tensors = {} if example is None else tensor_fields(example.fields)
        yield LatentGroup(size=size, shape=shape(size), count=count, tensors=tensors)


def _missing(path: Path, workers: Workers) -> bool:
    """Whether the leading process finds no finished cache; the same answer in all processes of the run."""
    return workers.any(workers.leads and not path.is_dir())


@contextmanager
def _only_run(path: Path, workers: Workers, log: Callable[[str], None] | None) -> Iterator[None]:
    """Within the block only this run's processes write the cache; waits for another run that does."""
    if not workers.leads:
        workers.barrier()
        yield
        return
    with exclusive(path, wait=True, log=log):
        workers.barrier()
        yield


@torch.no_grad()
def _encode(
    model: LatentDiffusion,
    dataset: Dataset,
    path: Path,
    header: LatentHeader,
    batch: int,
    progress: Progress | None,
    workers: Workers,
) -> None:
    """Writes the cache; each process encodes its share of what remains."""
    if workers.leads:
        buckets = buckets_of(dataset)
        writer = LatentWriter(path, header, groups=None if buckets is None else buckets.rows)
    workers.barrier()
    if not workers.leads:
        writer = LatentWriter(path, header, part=workers.rank)
    with writer:
        shares = [_share(writer.todo(variant), workers) for variant in range(header.variants)]
        workers.barrier()  # all have read the same list of missing rows
        done, total = 0, sum(map(len, shares))
        for variant, share in enumerate(shares):
            left = set(writer.todo(variant))  # without the rows found unreadable under another variant
            for part in sweep(dataset, batch, [row for row in share if row in left], unreadable=writer.skip):
                images = part.images.flip(-1) if variant else part.images
                images = images.to(model.device).contiguous(memory_format=torch.channels_last)
                writer.write(part.index, model.autoencoder.encode(images).moments, part.fields, variant)
                done += len(part.index)
                if progress is not None:
                    progress(done, total)
        if not workers.leads:
            writer.close()
        workers.barrier()
        if workers.leads:
            writer.finish()
    workers.barrier()


def _share(rows: list[int], workers: Workers) -> list[int]:
    """The rows that this process encodes: next to each other, so that it reads few shards and writes few pages."""
    start, end = (len(rows) * (workers.rank + i) // workers.world for i in range(2))
    return rows[start:end]


def _first_readable(dataset: Dataset, rows: Sequence[int]) -> Example | None:
    for row in rows:
        try:
            return dataset[row]
        except UnreadableImage:
            continue
    return None


def measured_scaling(latents: MeasuredLatents) -> Scaling:
    """Zero mean and unit variance per channel over the whole cached set. Raises UserError if a channel is constant."""
    statistics = latents.statistics()
    dead = [i for i, std in enumerate(statistics.std.tolist()) if not std > 0]
    if dead:
        raise UserError(f"channel {dead[0]} of the latents never varies: train the autoencoder longer or start again")
    return Scaling.from_statistics(statistics.mean, statistics.std)
