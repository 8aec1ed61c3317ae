"""The real images in feature space, read once: kept on disk by the content of data, network and protocol."""

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

KEPT = 50_000
"""Rows whose features are kept; statistics are of all."""
_EDITION = 1  # counted up whenever the same key would stand for other numbers


@dataclass(frozen=True)
class Reference:
    """Real images as a network sees them.

    `statistics`: of all; `features` (M, D) float32: of a random part, at most KEPT; `rows` (M,): which rows of the
    data those are; `spatial`: statistics of the coarse map where the network has one.
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
    """The features of a data set, or of `count` random rows of it; from `cache` where they are there already.

    Raises UserError where nothing can be read.
    """
    key = reference_key(network, dataset, count, spatial)
    place = None if cache is None else cache / f"features-{key}.safetensors"
    if place is not None and place.exists():
        try:
            return _from_tensors(load_tensors(place)[0])
        except (UserError, KeyError):
            pass  # damaged: made anew
    made = _read(network, dataset, chosen_rows(dataset, count), batch, spatial, progress)
    if place is not None:
        save_tensors(place, _tensors(made))
    return made


def chosen_rows(dataset: Dataset, count: int | None) -> list[int]:
    """`count` rows, or all, in a random order that depends on nothing but their number."""
    rows = torch.randperm(len(dataset), generator=rng.generator(0, "reference"))
    return [int(row) for row in rows[:count]]


def reference_key(network: FeatureNetwork, dataset: Dataset, count: int | None, spatial: bool) -> str:
    """Changes with whatever changes the features."""
    known = (_EDITION, KEPT, dataset.fingerprint(), count, spatial, sorted(network.describe().items()))
    return blake2b(repr(known).encode(), digest_size=12).hexdigest()


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
        room = KEPT - len(kept)
        if room > 0:
            features.append(found.pooled[:room])
            kept += read.index[:room]
        if spatial and found.spatial is not None:
            layout = layout or GaussianStatistics(found.spatial.shape[1])
            layout.update(found.spatial)
    if not features:
        raise UserError(f"none of the {len(rows)} reference images can be read: {reasons[0]}")
    return Reference(statistics, torch.cat(features), torch.tensor(kept), layout)


def _tensors(made: Reference) -> dict[str, Tensor]:
    tensors = {f"statistics.{name}": value for name, value in made.statistics.tensors().items()}
    if made.spatial is not None:
        tensors |= {f"spatial.{name}": value for name, value in made.spatial.tensors().items()}
    return tensors | {"features": made.features, "rows": made.rows}


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
