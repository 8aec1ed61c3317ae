"""Feature networks by the options of the command line, and the cache of their features."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sfumato.evaluation.features import FeatureNetwork
    from sfumato.evaluation.pretrained import ClipScore

FILES = ("vgg16", "lpips")
"""Weights that are no feature network: the two files of LPIPS."""


def named_values(option: str, given: Sequence[str] | None) -> dict[str, str]:
    """NAME=VALUE pairs. Raises UserError for anything else, and for a name that takes no weights."""
    from sfumato.cli.arguments import path_text
    from sfumato.config import nearest
    from sfumato.errors import UserError
    from sfumato.evaluation.table import NETWORKS

    known = [*NETWORKS, *FILES]
    pairs = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise UserError(f"{option} {text!r} is not of the form NAME=VALUE, such as inception=weights.pth")
        if name not in known:
            raise UserError(f"{option} {text!r}: {name!r} is not one of {', '.join(known)}{nearest(name, known)}")
        if option == "--weights":
            value = path_text(value, f"{option} {name}")
        pairs[name] = value
    return pairs


def loaded_networks(
    names: Sequence[str],
    weights: Sequence[str] | None,
    sha256: Sequence[str] | None,
    resize: str | None,
    device: "torch.device",
) -> "dict[str, FeatureNetwork]":
    """Each network once, by name, on the device. Raises UserError where weights are absent or wrong."""
    from typing import get_args

    from sfumato.errors import UserError
    from sfumato.evaluation.resize import ResizeFilter
    from sfumato.evaluation.table import load_network

    if resize is not None and resize not in get_args(ResizeFilter):
        raise UserError(f"--resize {resize!r} is not one of {', '.join(get_args(ResizeFilter))}")
    places, hashes = named_values("--weights", weights), named_values("--sha256", sha256)
    return {
        name: load_network(name, places.get(name), hashes.get(name), resize).to(device)  # type: ignore[arg-type]
        for name in dict.fromkeys(names)
    }


def loaded_clip(networks: "dict[str, FeatureNetwork]", weights: Sequence[str] | None) -> "ClipScore":
    """The agreement of images and texts, by the CLIP among the networks."""
    from sfumato.evaluation.pretrained import CLIP, CLIP_SOURCE, ClipScore

    return ClipScore.of(networks[CLIP], named_values("--weights", weights).get(CLIP, CLIP_SOURCE))


def cache_folder(given: Path | None) -> Path:
    """Where features of data are kept: as given, or the user's cache. Raises UserError where it cannot be written."""
    from sfumato.outputs import check_folder

    if given is not None:
        return check_folder(given, "--cache")
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sfumato"
