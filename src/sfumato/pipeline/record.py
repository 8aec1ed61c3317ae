"""How images were made: the metadata of a PNG or a service's reply, with which a later run reproduces them."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SampleRecord:
    """Plain data: the resolved options of a request and a model.

    Attributes:
        sampler, grid: `kind` and every setting that differs from its default.
        times: the times of the sampling loop.
        scales: guidance scales, one per image; parts: instead by part of a composite condition.
        settings: other options that differ from their defaults, by their names in the images' metadata.
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
        """Sampling steps of a batch."""
        return len(self.times) - 1

    def shared(self) -> dict[str, Any]:
        """The facts shared by all images, by the names of a PNG's text chunks."""
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
        """The metadata of the image of a row."""
        own = {
            "prompt": None if self.prompts is None else self.prompts[row],
            "label": None if self.labels is None else self.labels[row],
            "negative": None if self.negatives is None else self.negatives[row],
            "seed": self.seeds[row],
            "guidance": self.scales[row] if self.parts is None else None,
        }
        return {**self.shared(), **{name: value for name, value in own.items() if value is not None}}
