"""Between the stages: the posterior moments of a whole data set, cached once; stage 2 never runs the encoder."""

from pathlib import Path

import torch

from sfumato.autoencoder.scaling import Scaling
from sfumato.data.dataset import Dataset, Progress
from sfumato.data.latent_writing import LatentWriter
from sfumato.data.latents import LatentDataset, LatentHeader, tensor_fields
from sfumato.data.loader import sweep
from sfumato.model import LatentDiffusion
from sfumato.training.workers import Precision, autocast


@torch.no_grad()
def cached_latents(
    model: LatentDiffusion,
    dataset: Dataset,
    cache: Path,
    mirrored: bool = False,
    batch: int = 32,
    precision: Precision = "auto",
    progress: Progress | None = None,
) -> LatentDataset:
    """The latents of a data set under the model's autoencoder: opened if cached, else encoded or gone on with.

    The cache is keyed by the content of both, so that it cannot go stale. `mirrored` adds each picture's mirror image.
    """
    C, h, w = model.latent_shape
    variational = model.autoencoder.quantize is None
    header = LatentHeader(
        autoencoder=model.digest,
        data=dataset.fingerprint(),
        count=len(dataset),
        shape=(2 * C if variational else C, h, w),
        variational=variational,
        mirrored=mirrored,
        classes=dataset.classes,
        tensors=tensor_fields(dataset[0].fields),
    )
    path = cache / f"latents-{header.key()}"
    if path.is_dir():
        return LatentDataset(path, header.autoencoder, header.data)
    with LatentWriter(path, header) as writer, autocast(model.device, precision):
        done, total = 0, sum(len(writer.todo(variant)) for variant in range(header.variants))
        for variant in range(header.variants):
            for part in sweep(dataset, batch, writer.todo(variant), unreadable=writer.skip):
                images = part.images.flip(-1) if variant else part.images
                images = images.to(model.device).contiguous(memory_format=torch.channels_last)
                writer.write(part.index, model.autoencoder.encode(images).moments, part.fields, variant)
                done += len(part.index)
                if progress is not None:
                    progress(done, total)
        return writer.finish()


def measured_scaling(latents: LatentDataset) -> Scaling:
    """Zero mean and unit variance per channel over the whole cached set."""
    statistics = latents.statistics()
    return Scaling.from_statistics(statistics.mean, statistics.std)
