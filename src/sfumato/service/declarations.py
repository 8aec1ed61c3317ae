"""The tasks of the service and their fields, made from the declarations that the command line reads."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, get_args

from sfumato.pipeline.options import Option, like, options_of
from sfumato.pipeline.request import ImageGuidance, Projection, SampleRequest
from sfumato.pipeline.task_options import (
    DEFAULTS,
    SAMPLING,
    EditOptions,
    InpaintOptions,
    InterpolateOptions,
    LayoutOptions,
    OutpaintOptions,
    SemanticOptions,
    UpscaleOptions,
)
from sfumato.sampling.grids import GridKind
from sfumato.sampling.table import SAMPLERS

Kind = Literal[
    "text",
    "texts",
    "integer",
    "number",
    "boolean",
    "choice",
    "size",
    "pair",
    "numbers",
    "integers",
    "scales",
    "projection",
    "image",
    "boxes",
    "sides",
    "colours",
    "model",
]
TaskName = Literal["sample", "inpaint", "outpaint", "edit", "upscale", "semantic", "layout", "interpolate"]
KINDS: dict[str, Kind] = {
    "prompt": "texts",
    "negative": "texts",
    "label": "texts",
    "count": "integer",
    "seed": "integer",
    "seeds": "integers",
    "size": "size",
    "guidance": "scales",
    "interval": "pair",
    "rescale": "number",
    "projection": "projection",
    "sampler": "text",
    "steps": "integer",
    "eta": "number",
    "grid": "text",
    "shift": "number",
    "times": "numbers",
    "decoder": "choice",
    "window": "integer",
    "overlap": "number",
    "reuse": "integer",
    "image_guidance": "colours",
    "image_guidance_scale": "number",
    "autoguide": "model",
    "autoguide_scale": "number",
    "image": "image",
    "mask": "image",
    "style": "image",
    "map": "image",
    "feather": "integer",
    "jumps": "pair",
    "extend": "sides",
    "strength": "number",
    "style_amount": "number",
    "keep_colours": "boolean",
    "boxes": "boxes",
    "frames": "integer",
}
"""How the value of an option is written in JSON."""
NESTED: dict[Kind, type] = {"projection": Projection}
"""The parts of an object of a kind: options of its own."""
COMMON = (
    "prompt",
    "negative",
    "label",
    "count",
    "seed",
    "steps",
    "sampler",
    "guidance",
    "size",
    "image",
    "mask",
    "map",
    "boxes",
    "extend",
    "strength",
    "seeds",
    "frames",
)
NEEDS = {
    "prompt": ("text",),
    "negative": ("text",),
    "label": ("label",),
    "map": ("map",),
    "boxes": ("boxes",),
}
"""Fields of a model's conditioner without which an option has no effect."""
OF_THE_OPERATOR = ("memory", "batch")
"""Options of the machine, which is the service's."""
WHOLE_REQUEST = (
    "prompt",
    "label",
    "count",
    "seed",
    "seeds",
    "size",
    "negative",
    "guidance",
    "interval",
    "rescale",
    "projection",
    "autoguide",
    "autoguide_scale",
    "image_guidance",
    "sampler",
    "steps",
    "eta",
    "grid",
    "shift",
    "times",
    "decoder",
    "window",
    "overlap",
    "reuse",
)
BETWEEN = ("prompt", "label", "guidance", "interval", "rescale", "projection", "sampler", "steps", "eta", "grid")
BETWEEN_ALSO = ("shift", "times", "size")
WORDS = ("prompt", "label", "negative")


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Options of sampling beside a request."""

    image_guidance_scale: float = like(ImageGuidance, "scale")


@dataclass(frozen=True)
class Task:
    """A task: what it takes beside a request, and which options of a request, with the defaults it has."""

    help: str
    request: Sequence[str]
    own: type | None = None
    words: Sequence[str] = WORDS
    """Texts that a task takes, one for all its images; empty where they are among the request's options."""
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> list[Option]:
        """Its own options first, then those of a request."""
        own = [] if self.own is None else options_of(self.own)
        taken = {one.name for one in own}
        shared = {one.name: one for one in options_of(SampleRequest)}
        names = [name for name in (*self.words, *self.request) if name not in taken and name not in OF_THE_OPERATOR]
        made = [*(shared[name] for name in names)]
        return [*made, *own] if self.own is SampleOptions else [*own, *made]

    def required(self, option: Option) -> bool:
        """Whether a request must give it."""
        own = () if self.own is None else fields(self.own)
        return any(one.name == option.name and one.default is MISSING for one in own)

    def default(self, option: Option) -> Any:
        """Its default in this task."""
        return self.defaults.get(option.name, option.default)


TASKS: dict[TaskName, Task] = {
    "sample": Task("Images from nothing but prompts, labels and seeds.", WHOLE_REQUEST, SampleOptions, ()),
    "inpaint": Task("Fill the hole of an image.", SAMPLING, InpaintOptions, defaults=DEFAULTS),
    "outpaint": Task("Extend an image beyond its borders.", SAMPLING, OutpaintOptions, defaults=DEFAULTS),
    "edit": Task(
        "Change an image by a prompt, or by another's colours.",
        SAMPLING,
        EditOptions,
        defaults={**DEFAULTS, "steps": 30},
    ),
    "upscale": Task("Enlarge an image.", SAMPLING, UpscaleOptions, ("prompt",), DEFAULTS),
    "semantic": Task("An image for a label map.", SAMPLING, SemanticOptions, ("prompt", "negative"), DEFAULTS),
    "layout": Task("An image of objects in boxes.", SAMPLING, LayoutOptions, ("prompt", "negative"), DEFAULTS),
    "interpolate": Task("Images between seeds and between prompts.", (*BETWEEN, *BETWEEN_ALSO), InterpolateOptions, ()),
}


def kind_of(task: TaskName, option: Option) -> Kind:
    """How an option of a task is written in JSON: texts of tasks on an image are one for all images."""
    kind = KINDS[option.name]
    return "text" if kind == "texts" and TASKS[task].words else kind


def declared_fields(task: TaskName) -> list[dict[str, Any]]:
    """The declarations of a task's fields for building a form, as JSON."""
    declaration = TASKS[task]
    return [
        _declared(one, kind_of(task, one), declaration.default(one), declaration.required(one))
        for one in declaration.options
    ]


def _declared(one: Option, kind: Kind, default: Any, required: bool = False) -> dict[str, Any]:
    bounds = one.range
    choices = {"decoder": ["full", "tiny"]}.get(one.name)
    inner = options_of(NESTED[kind]) if kind in NESTED else None
    return {
        "name": one.name,
        "group": one.group,
        "help": one.help,
        "kind": kind,
        "default": plain(default),
        "required": required,
        "common": one.name in COMMON,
        "range": None
        if bounds is None
        else {
            "low": bounds.low,
            "high": bounds.high,
            "low_excluded": bounds.above,
            "high_excluded": bounds.below,
            "whole": bounds.whole,
        },
        "choices": choices,
        "fields": None if inner is None else [_declared(each, "number", each.default) for each in inner],
        "needs": list(NEEDS[one.name]) if one.name in NEEDS else None,
    }


def plain(value: Any) -> Any:
    """A default as JSON: tuples are lists."""
    return list(value) if isinstance(value, tuple) else value


def samplers() -> list[dict[str, str]]:
    """The samplers by name, with what each suits."""
    named = [{"name": name, "about": facts.suits} for name, facts in SAMPLERS.items()]
    return [{"name": "auto", "about": "chooses one of the others for the model and the number of steps"}, *named]


def grids() -> list[str]:
    """The spacings of steps by name."""
    return [kind for kind in get_args(GridKind) if kind != "times"]
