"""How images were made: the metadata of a PNG or a service's reply, with which a later run reproduces them."""

from dataclasses import dataclass
from typing import Any

from sfumato import __version__
from sfumato.pipeline.parts import Model
from sfumato.pipeline.plan import Plan
from sfumato.pipeline.request import SampleRequest


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


def record_of(model: Model, request: SampleRequest, planned: Plan) -> SampleRecord:
    """The record of a planned request."""
    sampler, grid = planned.choice.sampler, planned.choice.grid
    inputs = planned.inputs
    return SampleRecord(
        sampler={"kind": sampler.kind, **sampler.model_dump(exclude_defaults=True)},
        grid={"kind": grid.kind, **grid.model_dump(exclude_defaults=True)},
        times=tuple(planned.times.tolist()),
        prompts=None if inputs.prompts is None else tuple(inputs.prompts),
        labels=None if inputs.labels is None else tuple(inputs.labels),
        negatives=None if inputs.negatives is None else tuple(inputs.negatives),
        seeds=tuple(planned.seeds),
        scales=tuple(planned.scales),
        parts=planned.parts,
        size=planned.size,
        settings=_settings(request, planned),
        notes=planned.notes,
        model=model.digest,
        version=__version__,
    )


def _settings(request: SampleRequest, planned: Plan) -> dict[str, Any]:
    """Options that differ from their defaults; those of guidance only where there is guidance."""
    settings: dict[str, Any] = {}
    guided = planned.parts is not None or any(scale != 1 for scale in planned.scales) or request.autoguide is not None
    if guided and request.interval != (0.0, 1.0):
        settings["interval"] = f"{request.interval[0]:g},{request.interval[1]:g}"
    if guided and request.rescale:
        settings["rescale"] = request.rescale
    if guided and request.projection is not None:
        p = request.projection
        limit = "none" if p.limit is None else f"{p.limit:g}"
        settings["apg"] = f"parallel={p.parallel:g},limit={limit},momentum={p.momentum:g}"
    if request.autoguide is not None:
        settings |= {"autoguide": request.autoguide.digest, "autoguide scale": request.autoguide_scale}
    if request.classifier is not None:
        settings["classifier scale"] = request.classifier.scale
    if request.image_guidance is not None:
        settings["image guidance scale"] = request.image_guidance.scale
    if request.initial is not None:
        settings["strength"] = request.strength
    if request.jumps is not None:
        settings["jumps"] = f"{request.jumps[0]},{request.jumps[1]}"
    if planned.window != planned.shape[1:]:
        f = planned.size[0] // planned.shape[1]
        settings |= {"window": f"{planned.window[0] * f}x{planned.window[1] * f}", "overlap": request.overlap}
    if request.reuse > 1:
        settings["reuse"] = request.reuse
    if request.decoder != "full":
        settings["decoder"] = request.decoder
    return settings
