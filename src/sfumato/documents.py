"""Reading untrusted YAML and JSON within bounds: size, depth, count, length of numbers, no repeated keys.

PyYAML and json build whatever a text describes; here it is measured first. Aliases count as often as they are used, so
ten lines that repeat each other ten times are refused before anything is built.
"""

import json
import math
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import Resolver
from yaml.scanner import Scanner

from sfumato.errors import UserError
from sfumato.foreign import check_regular, short

MAX_TEXT = 8 << 20
"""Most bytes of a configuration. The largest real ones list some thousand names."""
MAX_DEPTH = 64
MAX_VALUES = 200_000
MAX_DIGITS = 100
MAX_KEY = 1 << 60
"""Larger whole numbers share their hash with others, which makes a dictionary of them slow."""


def read_text(path: Path | str, what: str = "", limit: int = MAX_TEXT) -> str:
    """The text of a regular UTF-8 file of at most `limit` bytes.

    `what` names the file's role before its path in errors ("config "). Raises UserError.
    """
    path = Path(path)
    check_regular(path)
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UserError(f"{what}{str(path)!r} has more than {limit >> 20} MiB; is it the right file?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{what}{str(path)!r} is not UTF-8 text (byte {error.start} is "
            f"0x{data[error.start]:02x}); is it the right file?"
        ) from None


# -- JSON -------------------------------------------------------------------------------------------------------------


def parse_json(text: str, source: str) -> Any:
    """A JSON value; `source` names it in errors.

    Raises UserError if it is damaged, too deep, repeats a key, or contains a number out of range.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_once,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=lambda name: _refuse(f"holds {name}, which is not a number in JSON"),
        )
    except RecursionError:
        raise UserError(f"{source} is nested deeper than {MAX_DEPTH} levels") from None
    except UserError as error:
        raise UserError(f"{source} {error}") from None
    except ValueError as error:
        raise UserError(f"{source} is not readable JSON ({error})") from None
    level, depth = [value], 0
    while level := [child for item in level for child in _children(item)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise UserError(f"{source} is nested deeper than {MAX_DEPTH} levels")
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises UserError if the file is missing, is not a regular file, or contains none."""
    value = parse_json(read_text(path), str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not {short(value)}")
    return value


def _children(item: Any) -> list[Any]:
    values = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return [value for value in values if isinstance(value, dict | list)]


def _refuse(why: str) -> Any:
    raise UserError(why)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise UserError(f"has the key {short(twice)} twice in one object")
    return found


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise UserError(f"holds a number of {len(digits)} digits")
    return int(digits)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise UserError(f"holds the number {short(text)}, which is too large")
    return value


# -- YAML -------------------------------------------------------------------------------------------------------------


class _YamlError(Exception):
    """A problem of a YAML text, without its name."""


class _PythonParser(Reader, Scanner, Parser):
    """PyYAML's own parser, with the same constructor as the C one."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)


_Parser: Any = _PythonParser
try:  # ten times as fast, if PyYAML was built with it
    from yaml.cyaml import CParser  # type: ignore[attr-defined]

    _Parser = CParser
except ImportError:
    pass


class _Loader(Composer, _Parser, SafeConstructor, Resolver):
    """The safe loader with bounds: the values in a node are counted, aliases included, when the node is composed."""

    def __init__(self, text: str) -> None:
        _Parser.__init__(self, text)
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)
        self.sizes: dict[int, tuple[int, int]] = {}
        """id of a finished node -> values in it, levels of it."""
        self.level = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        alias = self.check_event(yaml.AliasEvent)
        line = self.peek_event().start_mark.line + 1
        self.level += 1
        if self.level > MAX_DEPTH:
            raise _YamlError(f"is nested deeper than {MAX_DEPTH} levels in line {line}")
        node = super().compose_node(parent, index)
        self.level -= 1
        if alias and id(node) not in self.sizes:
            raise _YamlError(f"refers to itself in line {line}")
        self.measure(node)
        return node

    def measure(self, node: Any) -> tuple[int, int]:
        known = self.sizes.get(id(node))
        if known is not None:
            return known
        children: list[Any] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        count, depth = 1, 0
        for child in children:
            size = self.sizes[id(child)]
            count, depth = count + size[0], max(depth, size[1])
        if count > MAX_VALUES:
            raise _YamlError(f"holds more than {MAX_VALUES} values, with all that its aliases repeat")
        if depth >= MAX_DEPTH:
            raise _YamlError(f"is nested deeper than {MAX_DEPTH} levels in line {node.start_mark.line + 1}")
        self.sizes[id(node)] = count, depth + 1
        return self.sizes[id(node)]

    def flatten_mapping(self, node: Any) -> None:
        self.check_keys(node)
        super().flatten_mapping(node)

    def check_keys(self, node: Any) -> None:
        """Raises _YamlError if two keys of one mapping are the same; keys from a merge may be overridden."""
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                raise _YamlError(f"has the key {short(key.value)} twice, in lines {lines[name]} and {line}")
            lines[name] = line
            if key.tag == "tag:yaml.org,2002:int" and (
                len(key.value) > MAX_DIGITS or abs(int(self.construct_object(key))) >= MAX_KEY
            ):
                raise _YamlError(f"has the number {short(key.value)} as a key in line {line}")

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float") and len(value) > MAX_DIGITS:
            raise _YamlError(f"holds a number of {len(value)} digits in line {node.start_mark.line + 1}")
        return value


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text of one document, plain types only; None for a text without any.

    `source` names it in errors, as "config 'x.yaml'". Raises UserError if it is damaged, repeats a key (naming both
    lines), refers to itself, or exceeds the bounds of this module.
    """
    if len(text) > MAX_TEXT:
        raise UserError(f"{source} has more than {MAX_TEXT >> 20} MiB; is it the right file?")
    try:
        return _Loader(text).get_single_data()
    except _YamlError as error:
        raise UserError(f"{source} {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {_one_line(error)}") from None
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, AttributeError) as error:
        raise UserError(f"{source} is not valid YAML: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else f"{text[:397]}..."
