"""Checks of the typed arguments, for all commands and before anything is opened: paths, options given twice, bytes.

Every command of the command line is a `Command`. Which of its parameters are paths follows from their types: `Path`,
or a text marked with `MaybePath`.
"""

import inspect
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from sfumato.errors import UserError
from sfumato.pipeline import options

_NAMES = ("zoo:", "hub:")
COMMON = (
    "out",
    "label",
    "count",
    "seed",
    "size",
    "negative",
    "guidance",
    "sampler",
    "steps",
    "batch",
    "device",
    "precision",
)
"""The options that a help text shows first, where it shows options in groups; in this order."""
GROUPS = ("Arguments", "Options", *(group.capitalize() for group in get_args(options.Group)))
"""The sections of a help text."""
MAX_DIGITS = 400
"""Of a number in an argument; beyond some thousand Python itself refuses to read one."""
_DIGITS = re.compile(r"\d+")
_NUMBERS = {int: "a whole number", float: "a number"}
_REFUSED: Any = typer.BadParameter.__mro__[1]
"""The parser's UsageError, which typer does not give a name."""
_TYPE = re.compile(r" <(list\[)?(\w+)\]?>$")
_WORDS = {"str": "TEXT", "int": "N", "float": "X", "path": "PATH"}


class MaybePath:
    """Marks a text that may be a path, such as the configuration: a YAML file, or a name of the zoo."""


class Group(TyperGroup):
    """A group of commands whose help option is False where it is not given: for None typer imports pydantic."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False
        return option

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _one_sentence(ctx):
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        with _one_sentence(ctx):
            return super().resolve_command(ctx, args)


class Command(TyperCommand):
    """A command whose single options are given once, and whose paths are no empty texts and no URLs; ~ is expanded."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _one_sentence(ctx):
            if not ctx.resilient_parsing:
                self._check(ctx, args)
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        for name in self.paths():
            ctx.params[name] = _expanded(ctx.params.get(name), name)
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The help: arguments, the common options, then the others by group."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in sorted(self.get_params(ctx), key=_place):
            record = param.get_help_record(ctx)
            if record is not None:
                panel = getattr(param, "rich_help_panel", None) or "Options"
                title = "Arguments" if param.param_type_name == "argument" else str(panel)
                sections.setdefault(title, []).append((_typed(record[0], title), record[1]))
        for title in GROUPS:
            if sections.get(title):
                with formatter.section(title):
                    formatter.write_dl(sections[title])

    def paths(self) -> frozenset[str]:
        """The names of the parameters that are paths."""
        return frozenset(name for name, hint in self._hints.items() if _is_path(hint))

    @cached_property
    def _hints(self) -> dict[str, Any]:
        """The types of the parameters by name."""
        callback = inspect.unwrap(self.callback) if self.callback is not None else None
        hints = {} if callback is None else get_type_hints(callback, include_extras=True)
        return {name: hint for name, hint in hints.items() if name != "return"}

    def _check(self, ctx: Any, args: Sequence[str]) -> None:
        given, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for param in dict.fromkeys(order):
            single = param.param_type_name == "option" and not param.multiple and not getattr(param, "is_flag", False)
            if single and order.count(param) > 1:
                raise UserError(
                    f"{max(param.opts, key=len)} is given {order.count(param)} times: give it once, only one can count"
                )
        hints = self._hints
        for param in self.params:
            values = given.get(param.name)
            for value in values if isinstance(values, list | tuple) else [values]:
                if value is not None and _is_path(hints.get(param.name)):
                    path_text(value, _title(param))
                if isinstance(value, str):
                    _check_number(value, hints.get(param.name), _title(param))


@contextmanager
def _one_sentence(ctx: Any) -> Iterator[None]:
    """Within the block, what the parser refuses is a UserError that names the way out."""
    try:
        yield
    except _REFUSED as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        message = error.format_message().rstrip(".")
        see = f"`{(error.ctx or ctx).command_path} --help`"
        message = f"{message[:1].lower()}{message[1:]}"
        raise UserError(f"{message} See {see}" if message.endswith("?") else f"{message}; see {see}") from None


def _check_number(text: str, hint: Any, title: str) -> None:
    """Raises UserError for text that should be a number and is not."""
    for kind, name in _NUMBERS.items():
        if hint is kind or kind in _parts_of_all(hint):
            try:
                kind(text)
            except ValueError:
                raise UserError(f"{title} is {text[:60]!r}: give {name}") from None


def _typed(name: str, section: str) -> str:
    """The first column of a help text: how a value is typed, instead of the name of its type in Python."""
    if section == "Arguments":
        return _TYPE.sub("", name)
    return _TYPE.sub(lambda found: f" {_WORDS.get(found[2].lower(), found[0].strip())}", name)


def path_text(text: str, name: str) -> str:
    """A path, or a name of the zoo or the hub, with ~ expanded. Raises UserError for what is neither.

    `name`: whose value it is. A model or configuration that stands for no file, such as `toy`, passes as it is.
    """
    if text.startswith(_NAMES) and text not in _NAMES:
        return text
    from sfumato.schema import checked_path

    try:
        return checked_path(text, name)
    except ValueError as error:
        raise UserError(str(error)) from None


def check_texts(arguments: Sequence[str]) -> None:
    """Raises UserError where an argument holds a NUL, bytes that are no UTF-8 text, or a number that none can use."""
    for argument in arguments:
        digits = max(map(len, _DIGITS.findall(argument)), default=0)
        if digits > MAX_DIGITS:
            raise UserError(f"an argument holds a number of {digits} digits: {argument[:60]!r}…; give a smaller one")
        if "\0" in argument:
            raise UserError(f"the argument {argument!r} holds a NUL character, which no text or path may have")
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            shown = os.fsencode(argument) if _from_bytes(argument) else argument
            raise UserError(
                f"the argument {shown!r} is not UTF-8 text: type it in UTF-8, or rename the file that it names"
            ) from None


def _from_bytes(argument: str) -> bool:
    try:
        os.fsencode(argument)
    except UnicodeEncodeError:
        return False
    return True


def _title(param: Any) -> str:
    """A parameter as the user knows it."""
    if param.param_type_name == "option":
        return str(max(param.opts, key=len))
    return str(param.metavar or param.name.upper().rstrip("_")).strip("[].")


def _place(param: Any) -> tuple[bool, int]:
    """Where a parameter goes in a help text: required ones, the common ones, the others as they are declared.

    Arguments stay in the order in which they are typed.
    """
    if param.param_type_name == "argument":
        return (False, 0)
    place = COMMON.index(param.name) if param.name in COMMON else len(COMMON)
    return (not param.required, place)


def _is_path(hint: Any) -> bool:
    return hint is Path or isinstance(hint, MaybePath) or any(_is_path(part) for part in _parts(hint))


def _parts(hint: Any) -> tuple[Any, ...]:
    return (*get_args(hint), *getattr(hint, "__metadata__", ()))


def _parts_of_all(hint: Any) -> tuple[Any, ...]:
    """The parts of a type, at every depth."""
    return tuple(each for part in _parts(hint) for each in (part, *_parts_of_all(part)))


def _expanded(value: Any, name: str) -> Any:
    """The value, or values, with a leading ~ replaced by the home folder."""
    if isinstance(value, list | tuple):
        return type(value)(_expanded(each, name) for each in value)
    if not isinstance(value, str | Path) or not str(value).startswith("~"):
        return value
    return type(value)(path_text(str(value), name))
