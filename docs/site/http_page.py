"""The page of the service's addresses, from its OpenAPI description."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sfumato.service.app import build_app
from sfumato.service.service import Service
from sfumato.service.settings import ServiceSettings

HEAD = """# HTTP

The addresses of `sfumato serve`, from its OpenAPI description (`/openapi.json` of a running service has all of it).
[Models as a service](../service.md) explains how to use them.

"""
PROTOCOLS = (
    ("/v1/images", "OpenAI's protocol"),
    ("/sdapi", "AUTOMATIC1111's protocol"),
    ("/v1", "sfumato's own protocol"),
)


def page() -> str:
    """Markdown: the addresses by protocol, then the fields of every body."""
    with tempfile.TemporaryDirectory() as out:
        settings = ServiceSettings(models=(), out=Path(out))
        described = build_app(Service(settings)).openapi()
    schemas = described["components"]["schemas"]
    groups: dict[str, list[str]] = {
        name: [] for name in ("sfumato's own protocol", "OpenAI's protocol", "AUTOMATIC1111's protocol", "Operation")
    }
    used: dict[str, None] = {}
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            groups[_protocol(path)].append(_row(method, path, operation, used))
    parts = [HEAD, '<div class="generated" markdown>\n']
    for name, rows in groups.items():
        parts += [f"## {name}\n", "| address | | body | answer |", "|---|---|---|---|", *rows, ""]
    parts.append("## Bodies and answers\n")
    parts += [_table(name, schemas[name]) for name in _with_inner(used, schemas)]
    return "\n".join([*parts, "</div>\n"])


def _protocol(path: str) -> str:
    return next((name for prefix, name in PROTOCOLS if path.startswith(prefix)), "Operation")


def _row(method: str, path: str, operation: dict[str, Any], used: dict[str, None]) -> str:
    body = _names(operation.get("requestBody", {}))
    answer = _names(operation["responses"].get("200", operation["responses"].get("202", {})))
    used.update(dict.fromkeys([*body, *answer]))
    text = operation.get("description", operation.get("summary", ""))
    parameters = [f"`{one['name']}`" for one in operation.get("parameters", ()) if one["in"] == "query"]
    text = " ".join(text.split()) + (f" Query: {', '.join(parameters)}." if parameters else "")
    return f"| `{method.upper()} {path}` | {_cell(text)} | {_links(body)} | {_links(answer)} |"


def _names(node: Any) -> list[str]:
    """The names of the schemas that a part of the description refers to, in order."""
    return list(dict.fromkeys(_references(node)))


def _references(node: Any) -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if key == "$ref" and isinstance(value, str):
            yield value.rsplit("/", 1)[1]
        else:
            yield from _references(value)


def _with_inner(names: dict[str, None], schemas: dict[str, Any]) -> list[str]:
    """The names and those inside them."""
    found = dict.fromkeys(names)
    waiting = list(found)
    while waiting:
        inner = [name for name in _names(schemas[waiting.pop(0)]) if name not in found]
        found.update(dict.fromkeys(inner))
        waiting += inner
    return list(found)


def _links(names: list[str]) -> str:
    return ", ".join(f"[{name}](#{name.lower()})" for name in names)


def _table(name: str, schema: dict[str, Any]) -> str:
    lines = [f"### {name}", "", " ".join(str(schema.get("description", "")).split()), ""]
    required = schema.get("required", ())
    rows = [_field(key, field, key in required) for key, field in schema.get("properties", {}).items()]
    if rows:
        lines += ["| field | type | default | |", "|---|---|---|---|", *rows, ""]
    elif "enum" in schema:
        lines += [", ".join(f"`{value}`" for value in schema["enum"]), ""]
    return "\n".join(lines)


def _field(key: str, field: dict[str, Any], required: bool) -> str:
    default = "**required**" if required else _default(field)
    return f"| `{key}` | {_type(field)} | {default} | {_cell(field.get('description', ''))} |"


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return _links([field["$ref"].rsplit("/", 1)[1]])
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"] if one.get("type") != "null")
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    bounds = [
        f"{sign} {field[key]:g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in field
    ]
    return " ".join([str(field.get("type", "any")), ", ".join(bounds)]).strip()


def _default(field: dict[str, Any]) -> str:
    default = field.get("default")
    return "–" if default is None else f"`{_cell(str(default))}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
