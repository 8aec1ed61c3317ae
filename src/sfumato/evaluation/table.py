"""The feature networks by name."""

from collections.abc import Callable, Mapping
from pathlib import Path

from sfumato.errors import UserError
from sfumato.evaluation.features import EFFICIENTNET, FeatureNetwork, efficientnet_lite0
from sfumato.evaluation.inception import INCEPTION, WHERE, load_inception
from sfumato.evaluation.pretrained import CLIP, CLIP_SOURCE, DINOV2, DINOV2_SOURCE, load_clip, load_dinov2
from sfumato.evaluation.resize import ResizeFilter

Loader = Callable[[str | None, str | None, ResizeFilter | None], FeatureNetwork]


def _efficientnet(source: str | None, sha256: str | None, kind: ResizeFilter | None) -> FeatureNetwork:
    return efficientnet_lite0(resize_filter=kind or "bicubic")


def _inception(source: str | None, sha256: str | None, kind: ResizeFilter | None) -> FeatureNetwork:
    if source is None:
        raise UserError(
            f"the features of inception need its weights: --weights inception=FILE, from {WHERE}; "
            "or use efficientnet-lite0"
        )
    return load_inception(Path(source), sha256, kind or "tensorflow")


def _dinov2(source: str | None, sha256: str | None, kind: ResizeFilter | None) -> FeatureNetwork:
    return load_dinov2(source or DINOV2_SOURCE, sha256, kind or "bicubic")


def _clip(source: str | None, sha256: str | None, kind: ResizeFilter | None) -> FeatureNetwork:
    return load_clip(source or CLIP_SOURCE, sha256, kind or "bicubic")


NETWORKS: Mapping[str, Loader] = {
    EFFICIENTNET: _efficientnet,
    INCEPTION: _inception,
    DINOV2: _dinov2,
    CLIP: _clip,
}
"""Each loader accepts the source of its weights, their expected hash, and the resize filter; None: its default."""


def load_network(
    name: str, source: str | None = None, sha256: str | None = None, resize_filter: ResizeFilter | None = None
) -> FeatureNetwork:
    """A network by name; `efficientnet-lite0@SIDE` uses images of another side than 224.

    Raises UserError for an unknown name, and if its weights are missing or not the expected ones.
    """
    base, at, side = name.partition("@")
    if at and base == EFFICIENTNET and side.isdecimal():
        return efficientnet_lite0(int(side), resize_filter or "bicubic")
    if name not in NETWORKS:
        raise UserError(f"feature network {name!r} is not one of {', '.join(NETWORKS)}")
    return NETWORKS[name](source, sha256, resize_filter)
