"""Features of the real images: computed once, cached on disk under a hash of data, network and protocol."""

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from sfumato import rng
from sfumato.checkpoint import load_tensors, save_tensors
from sfumato.data.dataset import Dataset, Progress, UnreadableImage
from sfumato.data.loader import sweep
from sfumato.errors import UserError
from sfumato.evaluation.features import FeatureNetwork
from sfumato.evaluation.frechet import GaussianStatistics

MOST_FEATURES = 50_000
"""Rows whose features are stored; the statistics cover all rows."""
_EDITION = 1  # increased whenever the same key would stand for different numbers


@dataclass(frozen=True)
class Reference:
    """Real images as a network sees them.

    `statistics`: of all images; `features` (M, D) float32: of a random part, at most MOST_FEATURES; `rows` (M,): their
    rows in the data; `spatial`: statistics of the coarse feature map if the network has one.
    """

    statistics: GaussianStatistics
    features: Tensor
    rows: Tensor
    spatial: GaussianStatistics | None


def reference(
    network: FeatureNetwork,
    dataset: Dataset,
    count: int | None,
    cache: Path | None,
    batch: int = 32,
    spatial: bool = False,
    progress: Progress | None = None,
) -> Reference:
    """The features of a dataset, or of `count` random rows of it; read from `cache` if they are there already.

    Raises UserError if no image can be read.
    """
    key = reference_key(network, dataset, count, spatial)
    place = None if cache is None else cache / f"features-{key}.safetensors"
    if place is not None and place.exists():
        try:
            return _from_tensors(load_tensors(place)[0])
        except (UserError, KeyError):
            pass  # damaged: computed again
    result = _read(network, dataset, chosen_rows(dataset, count), batch, spatial, progress)
    if place is not None:
        save_tensors(place, _tensors(result))
    return result


def chosen_rows(dataset: Dataset, count: int | None) -> list[int]:
    """`count` rows, or all, in a random order that depends only on the dataset's length."""
    rows = torch.randperm(len(dataset), generator=rng.generator(0, "reference"))
    return [int(row) for row in rows[:count]]


def reference_key(network: FeatureNetwork, dataset: Dataset, count: int | None, spatial: bool) -> str:
    """A hash of everything that the features depend on."""
    facts = (_EDITION, MOST_FEATURES, dataset.fingerprint(), count, spatial, sorted(network.describe().items()))
    return blake2b(repr(facts).encode(), digest_size=12).hexdigest()


def _read(
    network: FeatureNetwork,
    dataset: Dataset,
    rows: list[int],
    batch: int,
    spatial: bool,
    progress: Progress | None,
) -> Reference:
    statistics = GaussianStatistics(network.dim)
    layout: GaussianStatistics | None = None
    features: list[Tensor] = []
    kept: list[int] = []
    reasons: list[UnreadableImage] = []
    for read in sweep(dataset, batch, rows, unreadable=lambda row, error: reasons.append(error), progress=progress):
        found = network(read.images)
        statistics.update(found.pooled)
        room = MOST_FEATURES - len(kept)
        if room > 0:
            features.append(found.pooled[:room])
            kept += read.index[:room]
        if spatial and found.spatial is not None:
            layout = layout or GaussianStatistics(found.spatial.shape[1])
            layout.update(found.spatial)
    if not features:
        raise UserError(f"none of the {len(rows)} reference images can be read: {reasons[0]}")
    return Reference(statistics, torch.cat(features), torch.tensor(kept), layout)


def _tensors(result: Reference) -> dict[str, Tensor]:
    tensors = {f"statistics.{name}": value for name, value in result.statistics.tensors().items()}
    if result.spatial is not None:
        tensors |= {f"spatial.{name}": value for name, value in result.spatial.tensors().items()}
    return tensors | {"features": result.features, "rows": result.rows}


def _from_tensors(tensors: dict[str, Tensor]) -> Reference:
    def below(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    spatial = below("spatial.")
    return Reference(
        GaussianStatistics.from_tensors(below("statistics.")),
        tensors["features"],
        tensors["rows"],
        GaussianStatistics.from_tensors(spatial) if spatial else None,
    )
