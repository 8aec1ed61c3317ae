"""A task's declared options as the inputs of a node, and a node's values as options.

The declarations are those of the command line and the service: a new option of sfumato appears here by itself. ComfyUI
has no empty number: where an option may be left out, 0 stands for its default if 0 is no value of it, else an empty
text.
"""

import json
from collections.abc import Mapping
from typing import Any

from sfumato.errors import UserError
from sfumato.service.declarations import TASKS, TaskName, declared_fields, grids, samplers
from sfumato.tasks import Box, Extent

MODEL = "SFUMATO_MODEL"
AUTO = "auto"
LARGEST = 2**53 - 1
"""The largest whole number that a browser counts exactly."""
LEFT_OUT = ("projection", "pair", "numbers", "colours")
"""Kinds without a widget that fits them; `image_guidance_scale` belongs to one of these."""
SIDES = ("left", "top", "right", "bottom")
Field = Mapping[str, Any]


def fields_of(task: TaskName) -> list[dict[str, Any]]:
    """The declared options that a node of a task has; its seeds are counted up from the first."""
    unused = {"image_guidance_scale"} | (set() if task == "interpolate" else {"seeds"})
    return [one for one in declared_fields(task) if one["kind"] not in LEFT_OUT and one["name"] not in unused]


def input_types(task: TaskName) -> dict[str, dict[str, Any]]:
    """What ComfyUI's INPUT_TYPES returns: the model, images and common options first, the others after them."""
    groups: dict[str, dict[str, Any]] = {"required": {"model": (MODEL,)}, "optional": {}}
    named = fields_of(task)
    for one in sorted(named, key=lambda one: (not one["required"], not one["common"])):
        socket = one["kind"] in ("image", "model")
        place = "required" if one["required"] or (one["common"] and not socket) else "optional"
        groups[place] |= _inputs(one)
    return groups


def _inputs(one: Field) -> dict[str, Any]:
    """The inputs of an option by name: usually one, for sizes and sides several."""
    name, about = one["name"], {"tooltip": one["help"]}
    match one["kind"]:
        case "image":
            return {name: ("MASK" if name == "mask" else "IMAGE", about)}
        case "model":
            return {name: (MODEL, about)}
        case "boolean":
            return {name: ("BOOLEAN", {**about, "default": one["default"]})}
        case "choice":
            return {name: (one["choices"], {**about, "default": one["default"]})}
        case "text" if name == "sampler":
            return {name: ([each["name"] for each in samplers()], {**about, "default": AUTO})}
        case "text" if name == "grid":
            return {name: ([AUTO, *grids()], {**about, "default": AUTO})}
        case "size":
            return {
                part: _whole(0, 0, one["range"], f"{part} in pixels; 0: as trained") for part in ("height", "width")
            }
        case "sides":
            return {part: _whole(0, 0, one["range"], f"pixels to add: {part}") for part in SIDES}
        case "integer" if one["default"] is not None:
            return {name: _whole(one["default"], one["range"]["low"], one["range"], one["help"])}
        case "integer" if one["range"]["low"] >= 1:
            return {name: _whole(0, 0, one["range"], f"{one['help']} 0: the default.")}
        case "number" if one["default"] is not None:
            bounds = one["range"]
            number = {"default": float(one["default"]), "min": bounds["low"], "max": bounds["high"], "step": 0.01}
            return {name: ("FLOAT", {**about, **number})}
        case _:
            text = {"default": _text(one["default"]), "multiline": one["kind"] in ("text", "texts", "boxes")}
            return {name: ("STRING", {"tooltip": f"{one['help']} Empty: the default.", **text})}


def _whole(default: int, low: int, bounds: Field, help: str) -> tuple[str, dict[str, Any]]:
    low, high = max(low, -LARGEST), min(bounds["high"], LARGEST)
    return "INT", {"default": default, "min": low, "max": high, "tooltip": help}


def _text(default: Any) -> str:
    return ", ".join(map(str, default)) if isinstance(default, list) else str(default or "")


def options(task: TaskName, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a node's widgets as options, those at their default left out; images are not among them.

    Raises UserError for a text that is not what the option takes.
    """
    made: dict[str, Any] = {}
    for one in fields_of(task):
        if one["kind"] == "image":
            continue
        value = _value(one, values)
        if value is not None:
            made[one["name"]] = value
    return made


def _value(one: Field, values: Mapping[str, Any]) -> Any:
    name = one["name"]
    value = values.get(name)
    match one["kind"]:
        case "size":
            return _size(values.get("height", 0), values.get("width", 0))
        case "sides":
            return Extent(*(values.get(side, 0) for side in SIDES))
        case "text" if name in ("sampler", "grid"):
            return None if value == AUTO else value
        case "texts":
            lines = (value or "").splitlines()
            return None if not lines else lines if len(lines) > 1 else lines[0]
        case "integers":
            return [_number(name, part, int) for part in (value or "").split(",") if part.strip()] or None
        case "boxes":
            return _boxes(value)
        case "integer" if isinstance(value, int):
            return None if value == 0 and one["range"]["low"] >= 1 else value
        case "integer" | "number" | "scales" if isinstance(value, str):
            kind = int if one["kind"] == "integer" else float
            return _number(name, value, kind) if value.strip() else None
        case _:
            return None if value == "" else value


def _number(name: str, text: str, kind: type[Any]) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{name} is {text!r}: give a number, or leave it empty") from None


def _size(height: int, width: int) -> tuple[int, int] | None:
    if bool(height) != bool(width):
        raise UserError(f"height is {height} and width {width}: give both, or 0 for both")
    return (height, width) if height else None


def _boxes(text: str) -> list[Box]:
    try:
        return [Box(one["label"], tuple(one["box"])) for one in json.loads(text)]
    except (ValueError, TypeError, KeyError):
        raise UserError('boxes are not JSON such as [{"label": "dog", "box": [0.1, 0.2, 0.5, 0.5]}]') from None


def described(task: TaskName) -> str:
    """One sentence on a task."""
    return TASKS[task].help
