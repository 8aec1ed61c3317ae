"""The requested metrics, each with the network whose features it uses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sfumato.config import nearest
from sfumato.errors import UserError
from sfumato.evaluation.features import EFFICIENTNET
from sfumato.evaluation.inception import INCEPTION
from sfumato.evaluation.pretrained import CLIP
from sfumato.evaluation.table import NETWORKS

KINDS: Mapping[str, str] = {
    "fd": "Fréchet distance of features",
    "fd-inf": "the same, extrapolated to infinitely many samples",
    "sfd": "Fréchet distance of a coarse feature map: layout",
    "kd": "kernel distance (unbiased for few samples)",
    "is": "Inception Score",
    "prdc": "precision, recall, density, coverage",
    "cas": "classification accuracy score: a classifier trained on samples, tested on real images",
    "clip-score": "agreement of images and captions by CLIP",
    "reader": "the toy world's reader: share of stated facts that hold",
}
"""The metrics of image sets by name, with a description."""

ALIASES: Mapping[str, tuple[str, str | None]] = {
    "fid": ("fd", INCEPTION),
    "fid-inf": ("fd-inf", INCEPTION),
    "sfid": ("sfd", INCEPTION),
    "kid": ("kd", None),
}
"""Usual names: the metric and the network that they imply. A KID with other features is reported as KD."""

WITHOUT_DATA = ("is", "clip-score", "reader")
"""Metrics that need the samples only."""


@dataclass(frozen=True)
class MetricSpec:
    """One metric and its network; the reader has none."""

    kind: str
    network: str | None

    def label(self, name: str) -> str:
        """The name of the result, given the loaded network's `name`: FID only with the original Inception network."""
        if self.kind == "clip-score":
            return f"CLIP-score-{name}"
        usual = {"fd": "FID", "fd-inf": "FID-infinity", "sfd": "sFID", "kd": "KID", "is": "IS"}
        own = {"fd": "FD", "fd-inf": "FD-infinity", "sfd": "sFD", "kd": "KD", "is": "IS", "cas": "CAS-linear"}
        if name == INCEPTION and self.kind in usual:
            return usual[self.kind]
        return f"{own[self.kind]}-{name}"


def parse_metrics(names: Sequence[str], default: str = EFFICIENTNET) -> list[MetricSpec]:
    """Parses metric names such as fd, kid, fd-dinov2, prdc-inception; names without a network use the default.

    Raises UserError for an unknown name, an empty list, or a metric that the network does not support.
    """
    if not names:
        raise UserError(f"--metrics is empty: choose from {', '.join([*KINDS, *ALIASES])}")
    return list(dict.fromkeys(_parse_metric(name.strip().lower(), default) for name in names))


def _parse_metric(name: str, default: str) -> MetricSpec:
    kind, network = _parts(name)
    if kind in ALIASES:
        kind, implied = ALIASES[kind]
        if implied is not None and network not in (None, implied):
            raise UserError(f"metric {name!r}: that name means the features of {implied}; write {kind}-{network}")
        network = implied or network
    if kind == "reader":
        return MetricSpec(kind, None)
    network = network or (CLIP if kind == "clip-score" else default)
    base = network.partition("@")[0]
    if base not in NETWORKS:
        raise UserError(f"feature network {network!r} is not one of {', '.join(NETWORKS)}{nearest(base, NETWORKS)}")
    if kind in ("is", "sfd") and base not in (EFFICIENTNET, INCEPTION):
        raise UserError(
            f"metric {name!r} needs a network with {'classes' if kind == 'is' else 'a feature map'}: "
            f"{EFFICIENTNET} or {INCEPTION}"
        )
    if kind == "clip-score" and base != CLIP:
        raise UserError(f"metric {name!r}: the agreement of images and captions needs {CLIP}")
    return MetricSpec(kind, network)


def _parts(name: str) -> tuple[str, str | None]:
    """Splits a name into the metric and, after a hyphen, the network."""
    known = sorted([*KINDS, *ALIASES], key=len, reverse=True)  # fd-inf before fd
    for kind in known:
        if name == kind or name.startswith(kind + "-"):
            return kind, name[len(kind) + 1 :] or None
    raise UserError(f"metric {name!r} is not one of {', '.join(known)}{nearest(name, known)}")
