"""YAML -> typed configuration: strict, with dotted overrides, and errors that name the nearest known key."""

import difflib
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from sfumato.documents import parse_yaml, read_text
from sfumato.errors import UserError
from sfumato.foreign import reading, short
from sfumato.stored_format import upgraded

ZOO_PREFIX = "zoo:"
RUN_STATES = "states"
"""A folder beside the configuration of a run."""
_STEP_OF_VALIDATION = re.compile(r"[a-z]+(-[a-z]+)*\[.*\]", re.DOTALL)
"""As in `function-after[check(), int]`, which stands between the keys of a location."""
T = TypeVar("T", bound=BaseModel)


def zoo_names() -> list[str]:
    """The shipped configurations, as `room/name` without the suffix."""
    root = resources.files("sfumato") / "zoo"
    names = []
    for room in root.iterdir():
        if room.is_dir():
            names += [f"{room.name}/{f.name[:-5]}" for f in room.iterdir() if f.name.endswith(".yaml")]
    return sorted(names)


def zoo_text(name: str) -> str:
    """The YAML of a shipped configuration; its first line is a comment that describes it."""
    if name not in zoo_names():
        raise UserError(
            f"config {ZOO_PREFIX + name!r} is not in the zoo{nearest(name, zoo_names())}; `sfumato zoo` lists all"
        )
    return (resources.files("sfumato") / "zoo" / f"{name}.yaml").read_text(encoding="utf-8")


def read_source(source: str) -> dict[str, Any]:
    """The raw mapping of a YAML file, or of a shipped configuration named `zoo:room/name`.

    Raises UserError if the file is missing, is not YAML or is not a mapping.
    """
    if source.startswith(ZOO_PREFIX):
        text = zoo_text(source[len(ZOO_PREFIX) :])
    else:
        if not os.path.lexists(source):
            raise UserError(f"config {source!r} does not exist; give a YAML file or a zoo name such as zoo:toy/text")
        with reading(source):
            text = read_text(source, "config ")
    of_run = not source.startswith(ZOO_PREFIX) and (Path(source).parent / RUN_STATES).is_dir()
    return upgraded(parse_mapping(text, source), f"config {source!r}", of_run)


def parse_mapping(text: str, source: str) -> dict[str, Any]:
    """YAML text as a mapping; `source` names it in errors. Raises UserError for anything else, an empty text too."""
    raw = parse_yaml(text, f"config {source!r}")
    if raw is None:
        raise UserError(f"config {source!r} is empty: it has no settings; give a YAML file with some, or a zoo name")
    if not isinstance(raw, dict):
        raise UserError(f"config {source!r} must be a mapping of keys to values, not {short(raw)}")
    return raw


def section(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """A copy of a group of settings, empty if there is none. Raises UserError if it is not a group."""
    group = raw.get(name)
    if group is not None and not isinstance(group, dict):
        raise UserError(f"{name} is {str(group)[:60]!r}, not a group of settings: write {name}: {{key: value}}")
    return dict(group or {})


def apply_overrides(
    raw: dict[str, Any],
    overrides: Iterable[str],
    schema: type[BaseModel] | None = None,
    log: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """A copy of `raw` with each `a.b=value` set; values are read as YAML.

    Raises UserError on a malformed override, and on two values for one key.

    With `schema`, an override of a `kind` drops settings in `raw` that only the previous kind has, reported to `log`.
    """
    overrides, result = list(overrides), _copy(raw)
    given: dict[str, str] = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise UserError(f"override {override!r} is not of the form key.sub=value")
        if given.setdefault(path, text) != text:
            raise UserError(f"{path!r} is given twice, as {short(given[path])} and as {short(text)}: keep one of them")
        value = parse_yaml(text, f"the value of override {short(override)}")
        node = result
        for key in keys[:-1]:
            below = node.get(key)
            if below is None:
                below = node[key] = {}
            if not isinstance(below, dict):
                raise UserError(f"override {override!r}: {key!r} is a value, not a group of settings")
            node = below
        if isinstance(value, dict) and isinstance(node.get(keys[-1]), dict) and "kind" not in value:
            value = {**node[keys[-1]], **value}
        node[keys[-1]] = value
    if schema is not None:
        for path in dict.fromkeys(override.partition("=")[0] for override in overrides):
            if path.endswith(".kind"):
                _drop_other_kinds(result, raw, path.removesuffix(".kind"), overrides, schema, log)
    return result


def _drop_other_kinds(
    result: dict[str, Any],
    raw: dict[str, Any],
    path: str,
    overrides: Sequence[str],
    schema: type[BaseModel],
    log: Callable[[str], None] | None,
) -> None:
    """Removes from the group at `path` settings of `raw` that no override sets and its new kind does not have."""
    group, before = _at(result, path), _at(raw, path)
    known = _fields_of_kind(schema, path, group.get("kind"))
    set_by_hand = {override.partition("=")[0] for override in overrides}
    dropped = [key for key in before if key in group and key not in known and f"{path}.{key}" not in set_by_hand]
    if not known or not dropped:
        return
    for key in dropped:
        del group[key]
    if log is not None:
        log(f"{path}.kind={group['kind']}: {', '.join(f'{path}.{key}' for key in dropped)} do not apply to it, dropped")


def _at(tree: dict[str, Any], path: str) -> dict[str, Any]:
    """The group of settings at a dotted path, empty if there is none."""
    node: Any = tree
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _fields_of_kind(schema: type[BaseModel], path: str, kind: object) -> set[str]:
    """The settings of the class that the schema admits at a dotted path for a `kind`; empty if there is none."""
    annotations: list[Any] = [schema]
    for key in path.split("."):
        annotations = [found for annotation in annotations for found in _under(annotation, key)]
    models = [model for annotation in annotations for model in _models_in(annotation)]
    return {
        name
        for model in models
        if "kind" in model.model_fields and kind in typing.get_args(model.model_fields["kind"].annotation)
        for name in model.model_fields
    }


def _under(annotation: Any, key: str) -> list[Any]:
    """The annotation of the values under a key."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation.model_fields[key].annotation] if key in annotation.model_fields else []
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is dict:
        return [arguments[1]]
    return [found for argument in arguments for found in _under(argument, key)]


def parse(raw: dict[str, Any], schema: type[T], source: str) -> T:
    """Validates a raw mapping; raises UserError naming each problem, and the key nearest to an unknown one."""
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        problems = [_describe(schema, problem) for problem in error.errors()]
        raise UserError(f"config {source!r}: " + "; ".join(dict.fromkeys(problems))) from None


def load_config(source: str, overrides: Sequence[str], schema: type[T]) -> T:
    """Reads, overrides and validates a configuration (a YAML path or `zoo:room/name`)."""
    return parse(apply_overrides(read_source(source), overrides, schema), schema, source)


def to_yaml(config: BaseModel) -> str:
    """The configuration as YAML text that `parse` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?" for a name that is close to a known one, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _describe(schema: type[BaseModel], problem: Any) -> str:
    kind, message = problem["type"], problem["msg"]
    *above, last = problem["loc"] or ("",)
    location = [part for part in above if not _is_step_of_validation(part)]
    if problem["loc"] and (kind == "extra_forbidden" or not _is_step_of_validation(last)):
        location.append(last)  # an unknown key may look like anything
    if kind == "extra_forbidden":
        known = _known_keys(schema, location[:-1])
        hint = nearest(str(location[-1]), known) or f"; known keys: {', '.join(sorted(known))}"
        return f"unknown key {_dotted(schema, location)!r}{hint}"
    message = message.removeprefix("Value error, ")
    if kind == "value_error":
        return f"{_dotted(schema, location)}: {message}" if location else message
    value = problem.get("input")
    shown = f" (got {short(value)})" if isinstance(value, str | int | float | bool | None) and kind != "missing" else ""
    return f"{_dotted(schema, location)}: {message}{shown}"


def _is_step_of_validation(part: Any) -> bool:
    """Whether a part of an error's location names no key but a validator or a kind of a union."""
    return isinstance(part, str) and _STEP_OF_VALIDATION.fullmatch(part) is not None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The configuration classes an annotation admits."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, typing.Annotated, list, tuple, dict):
        return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]
    return []


def _tag_of(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("kind")
    return field.default if field else None


def _follow(schema: type[BaseModel], location: Sequence[Any]) -> tuple[list[type[BaseModel]], list[str]]:
    """Follows a pydantic error location; returns the classes it ends in and the path without union tags."""
    candidates, path = [schema], []
    for part in location:
        tagged = [m for m in candidates if _tag_of(m) == part and part not in m.model_fields]
        if tagged:
            candidates = tagged
            continue
        path.append(str(part))
        if isinstance(part, int):
            continue
        below = [n for m in candidates if part in m.model_fields for n in _models_in(m.model_fields[part].annotation)]
        candidates = below
    return candidates, path


def _known_keys(schema: type[BaseModel], location: Sequence[Any]) -> set[str]:
    return {name for model in _follow(schema, location)[0] for name in model.model_fields}


def _dotted(schema: type[BaseModel], location: Sequence[Any]) -> str:
    return ".".join(_follow(schema, location)[1])
