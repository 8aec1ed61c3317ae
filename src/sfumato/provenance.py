"""How an image was made, inside its PNG: a text that other programs read, and all that is needed to make it again.

Chunk `parameters` has AUTOMATIC1111's form; chunk `sfumato` is JSON. No chunk is named prompt or workflow: other
programs keep their own graphs under these names.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from PIL import Image

from sfumato import __version__
from sfumato.engine.packing import PackedConv2d, PackedLinear
from sfumato.pipeline.options import options_of
from sfumato.pipeline.parts import Model, second_stage
from sfumato.pipeline.record import SampleRecord
from sfumato.pipeline.request import Projection, SampleRequest
from sfumato.plain_json import from_json, to_json

FORMAT = 1
CHUNK, PARAMETERS = "sfumato", "parameters"
LONGEST = 1 << 20
"""Characters of a chunk that are read."""
OBJECTS = ("autoguide", "classifier", "image_guidance")
"""Options that are networks or functions, which no text stands for."""
AS_GIVEN = ("interval", "rescale", "window", "overlap", "reuse", "decoder", "strength", "jumps")
NAMES = {
    "steps": "Steps",
    "sampler": "Sampler",
    "grid": "Schedule type",
    "guidance": "CFG scale",
    "seed": "Seed",
    "size": "Size",
    "model": "Model hash",
    "name": "Model",
    "strength": "Denoising strength",
    "label": "Class",
}
"""Names of AUTOMATIC1111's text; further facts follow under their own."""


def texts_of(
    facts: Mapping[str, Any],
    *,
    size: tuple[int, int],
    request: Mapping[str, Any] | None = None,
    computed: Mapping[str, Any] | None = None,
    name: str | None = None,
    index: int = 0,
    missing: tuple[str, ...] = (),
) -> dict[str, str]:
    """The text chunks of an image of `size` (width, height).

    Args:
        facts: of the image, flat, for readers: a record's `of`, and what a command adds.
        size: of the image.
        request: the body of the service's request that makes this image; None for a sheet of several.
        computed: where and how it was computed, see `computed_by`.
        name: of the model's folder.
        index: which image of the request it is.
        missing: fields of the request that are images, which are not inside.
    """
    settings = settings_of(facts, request=request, computed=computed, name=name, index=index, missing=missing)
    return {PARAMETERS: parameters(facts, size, name), CHUNK: to_json(settings, ensure_ascii=False)}


def settings_of(
    facts: Mapping[str, Any],
    *,
    request: Mapping[str, Any] | None = None,
    computed: Mapping[str, Any] | None = None,
    name: str | None = None,
    index: int = 0,
    missing: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The content of the chunk `sfumato`; arguments as for `texts_of`."""
    return {
        "format": FORMAT,
        "version": __version__,
        "task": None if request is None else request["task"],
        "model": {"name": name, "digest": facts.get("model")},
        "request": None if request is None else dict(request),
        "index": index,
        "missing": list(missing),
        "computed": None if computed is None else dict(computed),
        "facts": {key: value for key, value in facts.items() if key != CHUNK},
    }


def parameters(facts: Mapping[str, Any], size: tuple[int, int], name: str | None = None) -> str:
    """AUTOMATIC1111's text: the prompt, the negative prompt, then names and values with commas between."""
    lines = [str(facts.get("prompt", ""))]
    if facts.get("negative"):
        lines.append(f"Negative prompt: {facts['negative']}")
    whole = {**facts, "size": f"{size[0]}x{size[1]}", "name": name}
    pairs = [(title, whole[key]) for key, title in NAMES.items() if whole.get(key) is not None]
    others = {
        key: value for key, value in facts.items() if key not in NAMES and key not in ("prompt", "negative", CHUNK)
    }
    pairs += [(key.replace(":", " "), value) for key, value in others.items()]
    pairs.append(("Version", f"sfumato {__version__}"))
    lines.append(", ".join(f"{title}: {_quoted(value)}" for title, value in pairs))
    return "\n".join(lines)


def _quoted(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ',\n:"') else text


def read_settings(image: Image.Image) -> tuple[dict[str, Any] | None, str | None]:
    """The content of the chunks `sfumato` and `parameters` of an opened image; None for one that is not there."""
    text = image.info.get(PARAMETERS)
    kept = image.info.get(CHUNK)
    found: Any = None
    if isinstance(kept, str) and len(kept) <= LONGEST:
        try:
            found = from_json(kept)
        except ValueError:
            found = None
    return found if _made_here(found) else None, text if isinstance(text, str) and len(text) <= LONGEST else None


def _made_here(found: Any) -> bool:
    """Whether the content of a chunk has the names and types of `settings_of`: anybody can edit the text of a PNG."""
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return False
    model, missing = found.get("model"), found.get("missing")
    return (
        isinstance(model, dict)
        and isinstance(model.get("name"), str | None)
        and isinstance(found.get("facts"), dict)
        and isinstance(found.get("request"), dict | None)
        and isinstance(found.get("computed"), dict | None)
        and isinstance(missing, list)
        and all(isinstance(name, str) for name in missing)
    )


def sample_body(record: SampleRecord, row: int, request: SampleRequest) -> dict[str, Any]:
    """The body of the service's request for the image of a row: all that was resolved, as JSON."""
    body: dict[str, Any] = {"task": "sample", "seeds": [record.seeds[row]], "size": list(record.size)}
    for name, values in (("prompt", record.prompts), ("label", record.labels), ("negative", record.negatives)):
        if values is not None:
            body[name] = values[row]
    return {**body, **sampling_body(record, row, request)}


def sampling_body(record: SampleRecord, row: int, request: SampleRequest) -> dict[str, Any]:
    """The part of a body that is about sampling."""
    body: dict[str, Any] = {"sampler": named(record.sampler)}
    grid = dict(record.grid)
    times = grid.pop("times", None)
    if grid["kind"] == "times" and times is not None:
        body["times"] = list(times)
    else:
        body |= {"grid": named(grid), "steps": request.steps or record.steps}
    body["guidance"] = dict(record.parts) if record.parts is not None else record.scales[row]
    usual = SampleRequest()
    for name in AS_GIVEN:
        value = getattr(request, name)
        if value != getattr(usual, name):
            body[name] = list(value) if isinstance(value, tuple) else value
    if request.projection is not None:
        body["projection"] = {each.name: getattr(request.projection, each.name) for each in fields(Projection)}
    return body


def named(settings: Mapping[str, Any]) -> str:
    """A sampler or a grid as text that is read back to the same numbers: kind:key=value,..."""
    others = ",".join(f"{key}={_scalar(value)}" for key, value in settings.items() if key != "kind")
    return f"{settings['kind']}{':' if others else ''}{others}"


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        text = repr(value)
        return text if "e" not in text or "." in text else text.replace("e", ".0e")  # YAML's floats have a point
    return json.dumps(value)


def not_in_text(request: SampleRequest) -> tuple[str, ...]:
    """Options in use that no text stands for."""
    known = {one.name for one in options_of(SampleRequest)}
    return tuple(name for name in OBJECTS if name in known and getattr(request, name) is not None)


def computed_by(model: Model, rows: int) -> dict[str, Any]:
    """Where and how images were computed: what their last bits depend on beside the request.

    rows: the number of images computed at once.
    """
    packed = _packed(model)
    device = model.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    processor = torch.backends.cpu.get_cpu_capability() if device == "cpu" else torch.cuda.get_device_name(model.device)
    return {
        "device": device,
        "processor": processor,
        "type": str(packed or autocast).removeprefix("torch."),
        "packed": packed is not None,
        "threads": torch.get_num_threads(),
        "rows": rows,
        "torch": torch.__version__,
    }


def _packed(model: Model) -> torch.dtype | None:
    """The type of a packed model's weights."""
    layers = second_stage(model).denoiser.modules()
    found = [each.dtype for each in layers if isinstance(each, PackedConv2d | PackedLinear)]
    types = [each for each in found if each != torch.float32] or found
    return types[0] if types else None
