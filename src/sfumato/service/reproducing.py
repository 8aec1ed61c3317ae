"""The request that makes one image of a job again, and sampling it again."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from sfumato import __version__
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.model_folder import load
from sfumato.pipeline import pipeline
from sfumato.pipeline.record import SampleRecord
from sfumato.provenance import computed_by, sample_body, sampling_body
from sfumato.service.checking import IMAGES, checked_body, job_from
from sfumato.service.declarations import WORDS
from sfumato.service.jobs import Job
from sfumato.service.registry import KnownModel, described
from sfumato.service.settings import ServiceSettings
from sfumato.service.units import Unit, units_of
from sfumato.tasks.requests import merged

DECODING = 4 << 30
"""Bytes of feature maps while encoding and decoding, the default of a request."""
MOST_ROWS = 1024
MOST_PIXELS = 1 << 24
"""Of a batch that is computed again, 64 images of 512x512; an image of a larger one is computed alone."""
UNBOUNDED = ServiceSettings(count=10**5, pixels=10**9, steps=10_000)
SAME = ("rows", "device", "processor", "type", "packed", "threads", "torch")


def made_by(unit: Unit, record: SampleRecord, row: int) -> dict[str, Any]:
    """The record of a finished image: arguments of `sfumato.provenance.texts_of`.

    row: of the image in the record's batch.
    """
    job = unit.job
    missing = tuple(name for name in IMAGES if job.request.get(name) is not None)
    facts = {**record.of(row), **({} if job.task == "sample" else {"task": job.task})}
    body = _body(job, unit, record, row)
    index = unit.index if job.task == "interpolate" else 0
    return {"facts": facts, "request": body, "name": job.known.id, "index": index, "missing": missing}


def _body(job: Job, unit: Unit, record: SampleRecord, row: int) -> dict[str, Any]:
    asked = {name: value for name, value in job.request.items() if value is not None and name not in IMAGES}
    asked.pop("model", None)
    if job.task == "sample":
        guides = ("image_guidance", "image_guidance_scale", "autoguide", "autoguide_scale")
        kept = {name: asked[name] for name in guides if name in asked}
        if "image_guidance" not in kept:
            kept.pop("image_guidance_scale", None)
        if "autoguide" not in kept:
            kept.pop("autoguide_scale", None)
        return {**sample_body(record, row, unit.request), **kept}
    sampling = sampling_body(record, row, unit.request)
    own: dict[str, Any]
    if job.task == "interpolate":
        own = {name: value for name, value in asked.items() if name in ("prompt", "label", "frames", "seeds")}
        return {"task": job.task, **own, **sampling, "size": list(record.size)}
    steps = {name: value for name, value in asked.items() if name in ("steps", "times")}
    own = {name: value for name, value in asked.items() if name in WORDS or name not in sampling}
    return {**own, **sampling, **steps, "count": 1, "seed": unit.seed}


@dataclass(frozen=True)
class Reproduced:
    """An image sampled again, and what was different from the first time, a phrase each."""

    image: Image.Image
    differences: tuple[str, ...]


def reproduce(settings: Mapping[str, Any], model: Any, images: Mapping[str, Image.Image]) -> Reproduced:
    """Samples an image again from the settings inside it.

    Args:
        settings: as `sfumato.provenance.read_settings` returns them.
        model: the path of the model's folder or run.
        images: the images that the request needs, by the names in `missing`.

    Raises:
        UserError: for settings that hold no request, another model, and images that are missing.
    """
    request, computed = settings.get("request"), settings.get("computed")
    if not isinstance(request, dict) or not isinstance(computed, dict):
        raise UserError(
            "the image records no request: it is a sheet of several, or was guided by networks or functions"
        )
    wanted = [name for name in settings.get("missing", ()) if name not in images]
    if wanted:
        given = " ".join(f"--input {name}=FILE" for name in wanted)
        raise UserError(f"the image was made from others, which are not inside it: give {given}")
    known = described("model", model)
    loaded, differences = _loaded(known, computed)
    digest = settings["model"].get("digest")
    if loaded.digest != digest:
        raise UserError(f"the image is of the model {digest}, and {str(model)!r} is {loaded.digest}: give that model")
    if not isinstance(request.get("autoguide"), type(None)):
        raise UserError("the image was guided by a weaker model, which is not inside it: sample it with --autoguide")
    unit = _unit(request, known, loaded, images, settings.get("index", 0))
    rows = _rows(computed.get("rows", 1), unit.request.size or loaded.config.image_size)
    joined = merged([unit.request] * rows, replace(unit.request, count=None, seeds=[unit.seed] * rows, batch=rows))
    made = unit.finish(pipeline.sample(loaded, joined).images[0].cpu())
    now = {**computed_by(loaded, rows), "version": __version__}
    before = {**computed, "version": settings.get("version")}
    differences += [
        f"{name} was {before.get(name)} and is {now[name]}"
        for name in ("version", *SAME)
        if before.get(name) != now[name]
    ]
    return Reproduced(made, tuple(differences))


def _rows(rows: object, size: tuple[int, int]) -> int:
    """How many images of the size (H, W) to compute at once: the number in the file, within a limit."""
    if not isinstance(rows, int) or not 1 <= rows <= MOST_ROWS or rows * size[0] * size[1] > MOST_PIXELS:
        return 1
    return rows


def _unit(
    request: Mapping[str, Any], known: KnownModel, model: LatentDiffusion, images: Mapping[str, Image.Image], index: Any
) -> Unit:
    named = {name: "given" for name in images if name in IMAGES}
    body = checked_body({**request, **named, "model": None})
    units = units_of(job_from(body, known, images, UNBOUNDED), model, DECODING)
    if not isinstance(index, int) or not 0 <= index < len(units):
        raise UserError(f"the image is number {index!r} of its request, which makes {len(units)}")
    return units[index]


def _loaded(known: KnownModel, computed: Mapping[str, Any]) -> tuple[LatentDiffusion, list[str]]:
    """The model as it was when the image was made, as far as this machine can."""
    device, differences = str(computed.get("device")), list[str]()
    if device != "cpu" and not (device == "cuda" and torch.cuda.is_available()):
        device = "cpu"
    threads = computed.get("threads")
    if isinstance(threads, int) and 1 <= threads <= 1024:
        torch.set_num_threads(threads)
    model = load(known.path, device)
    _ = model.digest
    if computed.get("packed"):
        model.for_inference(torch.bfloat16 if computed.get("type") == "bfloat16" else torch.float32)
    return model, differences
