"""Flags declared by a field of a run configuration: its default, range and help are read from the class's source.

The source is parsed instead of imported, because a configuration class needs pydantic and torch, and a help text must
not wait for them. A test compares what is read here with the imported classes.
"""

import ast
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sfumato.cli.flags import flag
from sfumato.limits import MOST, MOST_OTHERWISE
from sfumato.pipeline.options import Group, Range

SOURCE = Path(__file__).parents[1]
LOW = {"ge": False, "gt": True}
HIGH = {"le": False, "lt": True}
LARGEST_FLOAT = 1e6


@dataclass(frozen=True)
class SchemaField:
    """A field as its class declares it; `default` is MISSING if there is none, or none that is a literal."""

    annotation: str
    default: Any
    limits: dict[str, Any]
    help: str


def schema_flag(schema: str, name: str, group: Group, default: Any = MISSING, help: str = "", **form: Any) -> Any:
    """A dataclass field of a command that a configuration declares; default and help replace what is declared there.

    Args:
        schema: module and class, such as training.distillation:Distillation.
        name: of the field.
        group: of the option.
        default: where the command has another one.
        help: where the field has no docstring.
        form: the fields of a Form.
    """
    declared = schema_fields(schema)[name]
    value = declared.default if default is MISSING else default
    return flag(value, group, help or declared.help, range_of(name, declared), **form)


def range_of(name: str, declared: SchemaField) -> Range | None:
    """The numbers that a field accepts; None for anything else."""
    kind = declared.annotation.split(" | ")[0]
    if kind not in ("int", "float"):
        return None
    whole = kind == "int"
    most = MOST.get(name, MOST_OTHERWISE) if whole else LARGEST_FLOAT
    low = next(((value, LOW[key]) for key, value in declared.limits.items() if key in LOW), (0, False))
    high = next(((value, HIGH[key]) for key, value in declared.limits.items() if key in HIGH), (most, False))
    return Range(low[0], high[0], above=low[1], below=high[1], whole=whole)


@cache
def schema_fields(schema: str) -> dict[str, SchemaField]:
    """The fields of a class by their names, with those of its bases."""
    module, _, wanted = schema.partition(":")
    body, bases = _class(module, wanted)
    homes = {base: _home(module, base) for base in reversed(bases)}
    found: dict[str, SchemaField] = {}
    for base, home in homes.items():
        found |= {} if home is None else schema_fields(f"{home}:{base}")
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name, inherited = node.target.id, found.get(node.target.id)
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            help = " ".join(str(text).split()) or ("" if inherited is None else inherited.help)
            default, limits = _default(node.value)
            annotation, of_type = _named(module, node.annotation)
            found[name] = SchemaField(annotation, default, {**of_type, **limits}, help)
    return found


def _class(module: str, wanted: str) -> tuple[list[ast.stmt], list[str]]:
    """The body of a class, and the names of its bases."""
    node = next(node for node in _tree(module).body if isinstance(node, ast.ClassDef) and node.name == wanted)
    return node.body, [base.id for base in node.bases if isinstance(base, ast.Name)]


def _home(module: str, name: str) -> str | None:
    """The module of ours that defines what `module` calls `name`, at its top level; None where it is another's."""
    for node in _tree(module).body:
        if isinstance(node, ast.ImportFrom) and name in {alias.asname or alias.name for alias in node.names}:
            package, _, below = (node.module or "").partition(".")
            return below if package == "sfumato" else None
    return module


def _named(module: str, annotation: ast.expr) -> tuple[str, dict[str, Any]]:
    """A type as text, and its limits: of `Count`, which is `Annotated[int, Field(ge=1)]`, int and ge=1."""
    home = _home(module, annotation.id) if isinstance(annotation, ast.Name) else None
    for node in _tree(home).body if home is not None else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == ast.unparse(annotation):
            match node.value:
                case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[kind, field])):
                    return ast.unparse(kind), _default(field)[1]
    return ast.unparse(annotation), {}


def _default(value: ast.expr | None) -> tuple[Any, dict[str, Any]]:
    """The default, and the limits of a `Field(default, ge=..., le=...)`."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "Field":
        limits = {one.arg: _literal(one.value) for one in value.keywords if one.arg in {**LOW, **HIGH}}
        return (_literal(value.args[0]) if value.args else MISSING), {str(key): each for key, each in limits.items()}
    return (MISSING if value is None else _literal(value)), {}


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return MISSING


@cache
def _tree(module: str) -> ast.Module:
    path = SOURCE / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_name(f"{path.name}.py")
    return ast.parse(file.read_text(encoding="utf-8"))
