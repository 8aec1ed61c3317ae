"""Which workloads a benchmark's `--only` names."""

from collections.abc import Mapping
from typing import TypeVar

B = TypeVar("B")


def chosen(builds: Mapping[str, B], only: str) -> dict[str, B]:
    """Those whose name contains it, or one of several parted by ;, for names have commas."""
    parts = [part.strip().lower() for part in only.split(";")]
    return {name: build for name, build in builds.items() if any(part in name.lower() for part in parts)}
