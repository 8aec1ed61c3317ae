"""The bodies of requests, one class for each task, made from its declared fields; OpenAPI describes them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from sfumato.pipeline.options import Option, Range, options_of
from sfumato.service.declarations import NESTED, TASKS, Kind, TaskName, kind_of, plain

LONGEST_TEXT = 10_000
LONGEST_REFERENCE = 64 << 20
MOST_ENTRIES = 4096


class Body(BaseModel):
    """A request: JSON of the declared types and no further names."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _text(value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("the text holds half of a surrogate pair, which is not a character") from None
    if "\0" in value:
        raise ValueError("the text holds a NUL character, which no text may have")
    return value


Text = Annotated[str, AfterValidator(_text), Field(max_length=LONGEST_TEXT)]
Name = Annotated[str, AfterValidator(_text), Field(max_length=200)]
Reference = Annotated[
    str,
    AfterValidator(_text),
    Field(max_length=LONGEST_REFERENCE, description="upload:ID, image:JOB/INDEX, data:image/png;base64,… or file:PATH"),
]
Colour = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]


class BoxBody(Body):
    """An object: its category by name or number, and x, y, width, height as fractions of the image."""

    label: int | Name
    box: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=4, max_length=4)]


def _number(bounds: Range | None, whole: bool) -> Any:
    kind: Any = int if whole else float
    if bounds is None:
        return kind
    ends: dict[str, Any] = {
        "gt" if bounds.above else "ge": bounds.low,
        "lt" if bounds.below else "le": bounds.high,
    }
    return Annotated[kind, Field(**ends)]


def _listed(each: Any, fewest: int = 1, most: int = MOST_ENTRIES) -> Any:
    return Annotated[list[each], Field(min_length=fewest, max_length=most)]


def _nested(kind: Kind) -> type[BaseModel]:
    made = {
        one.name: (
            _number(one.range, False) | (None if one.default is None else cast(Any, _number(one.range, False))),
            Field(one.default, description=one.help),
        )
        for one in options_of(NESTED[kind])
    }
    return create_model(f"{kind.capitalize()}Body", __base__=Body, **cast(Any, made))


ProjectionBody = _nested("projection")


def json_type(task: TaskName, option: Option) -> Any:
    """The type of an option's JSON value, with its bounds."""
    bounds, kind = option.range, kind_of(task, option)
    whole = bounds is not None and bounds.whole
    if kind in ("text", "texts"):
        one: Any = int | Name if option.name == "label" else Text
        return one | _listed(one) if kind == "texts" else one
    scale = _number(bounds, False)
    by_part: Any = Annotated[dict[Name, scale], Field(min_length=1, max_length=16)]  # type: ignore[valid-type]
    simple: Mapping[str, Any] = {
        "integer": _number(bounds, True),
        "number": _number(bounds, False),
        "boolean": bool,
        "choice": Literal["full", "tiny"],
        "size": _listed(_number(bounds, True), 2, 2),
        "pair": _listed(_number(bounds, whole), 2, 2),
        "numbers": _listed(_number(bounds, False)),
        "integers": _listed(_number(bounds, True)),
        "scales": scale | _listed(scale) | by_part,
        "projection": ProjectionBody,
        "image": Reference,
        "boxes": _listed(BoxBody, 0, 1000),
        "sides": _listed(_number(bounds, True), 4, 4),
        "colours": _listed(Colour, 1, 8),
        "model": Name,
    }
    return simple[kind]


def body_of(name: TaskName) -> type[Body]:
    """The class of a task's request."""
    task = TASKS[name]
    made: dict[str, Any] = {
        "task": (
            Literal[name],
            Field("sample", description=task.help) if name == "sample" else Field(description=task.help),
        ),
        "model": (Name | None, Field(None, description="A model's id; may be left out where there is only one.")),
    }
    for one in task.options:
        kind, default = json_type(name, one), plain(task.default(one))
        if task.required(one):
            made[one.name] = (kind, Field(description=one.help))
        else:
            optional = default is None or one.name == "window"  # null is auto there
            made[one.name] = (kind | None if optional else kind, Field(default, description=one.help))
    return create_model(f"{name.capitalize()}Body", __base__=Body, **made)


BODIES: dict[TaskName, type[Body]] = {name: body_of(name) for name in TASKS}
