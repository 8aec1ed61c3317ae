"""The record of a planned request: what was resolved, and the options that differ from the usual ones."""

from typing import Any

from sfumato import __version__
from sfumato.pipeline.parts import Model
from sfumato.pipeline.plan import Plan
from sfumato.pipeline.record import SampleRecord
from sfumato.pipeline.request import SampleRequest


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
    """Options that are not the usual ones; those of guidance only where there is guidance."""
    made: dict[str, Any] = {}
    guided = planned.parts is not None or any(scale != 1 for scale in planned.scales) or request.autoguide is not None
    if guided and request.interval != (0.0, 1.0):
        made["interval"] = f"{request.interval[0]:g},{request.interval[1]:g}"
    if guided and request.rescale:
        made["rescale"] = request.rescale
    if guided and request.projection is not None:
        p = request.projection
        limit = "none" if p.limit is None else f"{p.limit:g}"
        made["apg"] = f"parallel={p.parallel:g},limit={limit},momentum={p.momentum:g}"
    if request.autoguide is not None:
        made |= {"autoguide": request.autoguide.digest, "autoguide scale": request.autoguide_scale}
    if request.classifier is not None:
        made["classifier scale"] = request.classifier.scale
    if request.image_guidance is not None:
        made["image guidance scale"] = request.image_guidance.scale
    if request.initial is not None:
        made["strength"] = request.strength
    if request.jumps is not None:
        made["jumps"] = f"{request.jumps[0]},{request.jumps[1]}"
    if planned.window != planned.shape[1:]:
        f = planned.size[0] // planned.shape[1]
        made |= {"window": f"{planned.window[0] * f}x{planned.window[1] * f}", "overlap": request.overlap}
    if request.reuse > 1:
        made["reuse"] = request.reuse
    if request.decoder != "full":
        made["decoder"] = request.decoder
    return made
