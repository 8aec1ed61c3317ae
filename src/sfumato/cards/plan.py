"""What is to be measured: the metrics asked for, each with the network whose features it takes."""

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
    "cas": "classification accuracy score: a classifier taught by samples, tried on real images",
    "clip-score": "agreement of images and captions by CLIP",
    "reader": "the toy world's reader: share of stated facts that hold",
}
"""The metrics of sets by name, and what each is."""

ALIASES: Mapping[str, tuple[str, str | None]] = {
    "fid": ("fd", INCEPTION),
    "fid-inf": ("fd-inf", INCEPTION),
    "sfid": ("sfd", INCEPTION),
    "kid": ("kd", None),
}
"""Usual names: the metric and the network that they imply. A KID of other features is reported as KD."""

WITHOUT_DATA = ("is", "clip-score", "reader")
"""Metrics that look at the samples alone."""


@dataclass(frozen=True)
class Wanted:
    """One metric and its network; the reader has none."""

    kind: str
    network: str | None

    def label(self, name: str) -> str:
        """What the result is called, `name` being the loaded network's: FID only with the original's Inception."""
        if self.kind == "clip-score":
            return f"CLIP-score-{name}"
        usual = {"fd": "FID", "fd-inf": "FID-infinity", "sfd": "sFID", "kd": "KID", "is": "IS"}
        own = {"fd": "FD", "fd-inf": "FD-infinity", "sfd": "sFD", "kd": "KD", "is": "IS", "cas": "CAS-linear"}
        if name == INCEPTION and self.kind in usual:
            return usual[self.kind]
        return f"{own[self.kind]}-{name}"


def planned(names: Sequence[str], default: str = EFFICIENTNET) -> list[Wanted]:
    """The metrics of names such as fd, kid, fd-dinov2, prdc-inception; those that name no network take the default.

    Raises UserError for an unknown name, none at all, or a metric that the network cannot give.
    """
    if not names:
        raise UserError(f"--metrics names none: choose of {', '.join([*KINDS, *ALIASES])}")
    return list(dict.fromkeys(_wanted(name.strip().lower(), default) for name in names))


def _wanted(name: str, default: str) -> Wanted:
    kind, network = _parts(name)
    if kind in ALIASES:
        kind, implied = ALIASES[kind]
        if implied is not None and network not in (None, implied):
            raise UserError(f"metric {name!r}: that name is for the features of {implied} only; write {kind}-{network}")
        network = implied or network
    if kind == "reader":
        return Wanted(kind, None)
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
    return Wanted(kind, network)


def _parts(name: str) -> tuple[str, str | None]:
    """The metric and, behind a hyphen, the network."""
    known = sorted([*KINDS, *ALIASES], key=len, reverse=True)  # fd-inf before fd
    for kind in known:
        if name == kind or name.startswith(kind + "-"):
            return kind, name[len(kind) + 1 :] or None
    raise UserError(f"metric {name!r} is not one of {', '.join(known)}{nearest(name, known)}")
