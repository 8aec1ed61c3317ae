"""Commands from declarations: the flags of a command are the fields of dataclasses, parsed and checked in the same way.

A field is declared by `sfumato.pipeline.options.option`, which the service and the studio read too, or by `flag`, where
it belongs to the command line alone. How it is typed, where that does not follow from its type, is a `Form`. Importing
this module costs nothing.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Annotated, Any, TypeVar

import typer

from sfumato.cli.arguments import COMMON, MaybePath
from sfumato.pipeline import options
from sfumato.pipeline.options import DECLARED, Group, Option, Range, check_number

T = TypeVar("T")
FORM = "form"
REQUIRED: Any = MISSING
AS_DECLARED: Any = object()
GROUPED_FROM = 13
"""A help text of this many options shows them in groups, the common ones first."""


@dataclass(frozen=True)
class Form:
    """How an option is typed.

    Attributes:
        names: `--name` and others; by default the field's name.
        metavar: what stands for the value in the help.
        type: what the parser reads, where it is not the field's type.
        parse: (flag, what was typed) -> value; raises UserError.
        typed_default: the default as it is typed, where the field's own is something else.
        help: replaces the field's help, where that speaks of Python or of several images.
        hint: a sentence after the field's help: how the value is typed.
        argument: it has a position instead of a name.
        path: it is a path, or may be one such as a name of the zoo: empty texts and URLs are refused.
        range: of the number that is typed, where its unit is not the field's.
    """

    names: tuple[str, ...] = ()
    metavar: str | None = None
    type: Any = None
    parse: Callable[[str, Any], Any] | None = None
    typed_default: Any = AS_DECLARED
    help: str = ""
    hint: str = ""
    argument: bool = False
    path: bool = False
    range: Range | None = None


@dataclass(frozen=True)
class Flag:
    """An option of a command, and how it is typed."""

    option: Option
    form: Form
    required: bool = False

    @property
    def title(self) -> str:
        """The name that a user knows it by."""
        if self.form.argument:
            return (self.form.metavar or self.option.name.upper()).strip("[].")
        return max(self.names, key=len).partition("/")[0]

    @property
    def names(self) -> tuple[str, ...]:
        return self.form.names or ("--" + self.option.name.strip("_").replace("_", "-"),)

    @property
    def default(self) -> Any:
        """As it is typed."""
        return self.option.default if self.form.typed_default is AS_DECLARED else self.form.typed_default

    def value(self, typed: Any) -> Any:
        """The typed value of the field. Raises UserError naming the flag."""
        if typed is None:
            return None
        if self.form.range is not None:
            check_number(self.title, typed, self.form.range)
        value = typed if self.form.parse is None else self.form.parse(self.title, typed)
        if self.option.range is not None:
            check_number(self.title, value, self.option.range)
        return value

    def parameter(self, grouped: bool) -> inspect.Parameter:
        """The parameter of a function from which typer makes the flag."""
        help_text = f"{self.form.help or self.option.help} {self.form.hint}".strip()
        info: Any
        if self.form.argument:
            info = typer.Argument(metavar=self.form.metavar, help=help_text)
        else:
            panel = self.option.group.capitalize() if grouped and not self.common else None
            info = typer.Option(*self.names, metavar=self.form.metavar, help=help_text, rich_help_panel=panel)
        kind = self.option.type if self.form.type is None else self.form.type
        if self.default is None and not self.required:
            kind = kind | None
        hint: Any = Annotated[kind, info, MaybePath()] if self.form.path else Annotated[kind, info]
        default = inspect.Parameter.empty if self.required else self.default
        return inspect.Parameter(self.option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)

    @property
    def common(self) -> bool:
        return self.required or (self.option.name in COMMON and self.option.group not in ("access", "limits"))


def flag(default: Any, group: Group, help: str, range: Range | None = None, **form: Any) -> Any:
    """A dataclass field of the command line's own; `default` REQUIRED has none, `form` are the fields of a Form."""
    metadata = {DECLARED: (group, help, range), FORM: Form(**form)}
    return field(metadata=metadata) if default is REQUIRED else field(default=default, metadata=metadata)


def like(owner: type, name: str, default: Any = MISSING, **form: Any) -> Any:
    """A dataclass field that is declared at another dataclass: its group, range, help and, if none is given, default.

    The form given here replaces the one that is declared there.
    """
    declared: Field[Any] = options.like(owner, name, default)
    metadata = dict(declared.metadata) | ({FORM: Form(**form)} if form else {})
    return field(default=declared.default, metadata=metadata)


def flags_of(
    declared: type,
    names: Iterable[str] | None = None,
    forms: Mapping[str, Form] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> list[Flag]:
    """The flags of a dataclass' options, or of those with these names, in that order.

    Args:
        declared: the dataclass.
        names: of fields.
        forms: by the name of a field, where its own form does not hold.
        defaults: as typed, where a command has other ones than the dataclass.
    """
    forms, defaults = forms or {}, defaults or {}
    found = {each.name: each for each in fields(declared) if DECLARED in each.metadata}
    made = []
    for name in found if names is None else names:
        one = found[name]
        group, text, bounds = one.metadata[DECLARED]
        form = forms.get(name, one.metadata.get(FORM, Form()))
        if name in defaults:
            form = replace(form, typed_default=defaults[name])
        default = None if one.default is MISSING else one.default
        option = Option(name, one.type, default, group, text, bounds)
        made.append(Flag(option, form, one.default is MISSING and name not in defaults))
    return made


def command(own: type[T], shared: Sequence[Flag] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a command of a function of `own`, a dataclass of options, and of the values of `shared` flags by name.

    Without shared flags the function has the one argument.
    """
    flags = flags_of(own)

    def made(function: Callable[..., None]) -> Callable[..., None]:
        def run(**typed: Any) -> None:
            options = own(**{one.option.name: one.value(typed[one.option.name]) for one in flags})
            if shared:
                function(options, {one.option.name: one.value(typed[one.option.name]) for one in shared})
            else:
                function(options)

        every = [*flags, *shared]
        grouped = sum(not one.form.argument for one in every) >= GROUPED_FROM
        parameters = [one.parameter(grouped) for one in every]
        run.__name__, run.__doc__, run.__module__ = function.__name__, function.__doc__, function.__module__
        run.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": None}
        run.flags = every  # type: ignore[attr-defined]  # of any function
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # of any function
        return run

    return made
