"""Numbers that are not finite or outside the range of their option, given to every numeric option of every command."""

import math
import re
from typing import Any

import pytest
from test_flags import commands

from sfumato.cli.flags import Flag
from sfumato.errors import UserError
from sfumato.pipeline.options import Range

COMMANDS = commands()
TRIED = ("nan", "inf", "-inf", "-1", "0", "1e30", "1" + "0" * 30)


def is_number(param: Any) -> bool:
    """Whether the parser reads a number for a parameter."""
    return param.bare_type() in ("int", "float")


def flags_of_command(words: tuple[str, ...]) -> list[Flag]:
    return getattr(COMMANDS[words].callback, "flags", [])


NUMBERS = [(words, one) for words in COMMANDS for one in flags_of_command(words) if one.option.range or one.form.range]


def outside(bounds: Range, value: str) -> bool:
    """Whether the option does not accept the number."""
    number = float(value)
    if bounds.whole and math.isfinite(number) and number == int(number) and "e" not in value:
        return int(value) not in bounds
    return bounds.whole or number not in bounds


def test_every_number_has_a_range() -> None:
    """An option whose type is a number accepts only those of a declared range."""
    lacking = []
    for words, one in COMMANDS.items():
        declared = {each.option.name: each for each in flags_of_command(words)}
        for param in one.params:
            flag = declared.get(param.name)
            if is_number(param) and (flag is None or not (flag.option.range or flag.form.range)):
                lacking.append((*words, param.name))
    assert not lacking
    assert len(NUMBERS) > 150


@pytest.mark.parametrize("value", TRIED)
def test_numbers_out_of_range_are_refused(value: str) -> None:
    """Before a command does anything, naming the option; values within the range have the meaning of its help."""
    for _, one in NUMBERS:
        bounds = one.form.range or one.option.range
        assert bounds is not None
        if outside(bounds, value):
            whole = value.lstrip("-").isdecimal()
            typed = value if one.form.type is str else int(value) if whole else float(value)
            with pytest.raises(UserError, match=re.escape(one.title)):
                one.value(typed)
