"""How images were made: what a PNG carries, a service returns, and a later run needs to make them again."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SampleRecord:
    """Plain data: what was resolved from a request and a model.

    Attributes:
        sampler, grid: `kind` and every setting that is not the usual one.
        times: the times of the sampling loop.
        scales: guidance scales, one an image; parts: by the part of a composite condition instead.
        settings: other options that differ from their defaults, by the names that images carry.
        model: the model's digest.
        version: of sfumato.
    """

    sampler: dict[str, Any]
    grid: dict[str, Any]
    times: tuple[float, ...]
    prompts: tuple[str, ...] | None
    labels: tuple[int | str, ...] | None
    negatives: tuple[str, ...] | None
    seeds: tuple[int, ...]
    scales: tuple[float, ...]
    parts: dict[str, float] | None
    size: tuple[int, int]
    settings: dict[str, Any]
    notes: tuple[str, ...]
    model: str
    version: str

    @property
    def steps(self) -> int:
        """Of a batch."""
        return len(self.times) - 1

    def shared(self) -> dict[str, Any]:
        """What holds for all images, by the names that a PNG's text chunks have."""
        sampler, grid = dict(self.sampler), dict(self.grid)
        alike = {"guidance": self.scales[0]} if len(set(self.scales)) == 1 and self.parts is None else {}
        parts = {} if self.parts is None else {"guidance": ",".join(f"{k}={v:g}" for k, v in self.parts.items())}
        return {
            "sampler": sampler.pop("kind"),
            **sampler,
            "steps": self.steps,
            "grid": grid.pop("kind"),
            **grid,
            **alike,
            **parts,
            **self.settings,
            "model": self.model,
            "sfumato": self.version,
        }

    def of(self, row: int) -> dict[str, Any]:
        """What the image of a row carries."""
        own = {
            "prompt": None if self.prompts is None else self.prompts[row],
            "label": None if self.labels is None else self.labels[row],
            "negative": None if self.negatives is None else self.negatives[row],
            "seed": self.seeds[row],
            "guidance": self.scales[row] if self.parts is None else None,
        }
        return {**self.shared(), **{name: value for name, value in own.items() if value is not None}}
