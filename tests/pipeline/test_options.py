"""Options are declared once: every number has a range, which is checked when a request is made."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sfumato.errors import UserError
from sfumato.pipeline import memory
from sfumato.pipeline.options import Option, Range, options_of
from sfumato.pipeline.request import DEFAULT_MEMORY, DEFAULT_OVERLAP, Projection, SampleRequest

RANGED = [option for option in options_of(SampleRequest) if option.range is not None]
SOURCE = Path(__file__).parents[2] / "src"


@pytest.mark.parametrize("option", RANGED, ids=lambda option: option.name)
def test_numbers_outside_their_range_are_refused_by_name(option: Option) -> None:
    assert option.range is not None
    beyond = [math.nan, math.inf, -math.inf, 10**40, 10**5000, option.range.high * 2 + 1]
    beyond.append(option.range.low if option.range.above else option.range.low - 1)
    for value in beyond:
        given = (value, value) if option.name in ("size", "interval", "jumps") else value
        with pytest.raises(UserError, match=f"^{option.name.replace('_', ' ')} is .*: give a (whole )?number"):
            SampleRequest(**{option.name: given})


def test_lists_and_scales_of_parts_are_looked_into() -> None:
    for guidance in ([1.0, math.nan], {"text": 3.0, "map": math.nan}):
        with pytest.raises(UserError, match="guidance is nan"):
            SampleRequest(guidance=guidance)
    with pytest.raises(UserError, match="seeds is 9223372036854775808"):
        SampleRequest(seeds=range(2**63, 2**64))
    with pytest.raises(UserError, match="times is nan"):
        SampleRequest(times=[1.0, math.nan])


def test_settings_of_projected_guidance_have_ranges_too() -> None:
    for name, value in (("limit", math.nan), ("limit", 0.0), ("momentum", 1.0), ("parallel", math.inf)):
        with pytest.raises(UserError, match=rf"projection\.{name} is"):
            Projection(**{name: value})


def test_images_that_the_machine_cannot_hold_are_refused_before_a_model_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = 16 << 30
    monkeypatch.setattr(memory, "machine_memory", lambda: there)
    with pytest.raises(UserError, match=r"size 60000x60000 .* needs at least .* GiB for one image, .*a smaller size"):
        SampleRequest(size=(60_000, 60_000), count=1)
    side = 1 + math.isqrt(there // (4 * 36))
    SampleRequest(size=(side, side), count=1)
    with pytest.raises(UserError, match=r"batch 16 of .*: give a batch of at most [34]$"):
        SampleRequest(size=(side, side))


def test_every_option_has_a_help_text() -> None:
    options = options_of(SampleRequest)
    assert {option.group for option in options} == {"what to sample", "guidance", "sampler", "output", "machine"}
    for option in options:
        assert option.help.endswith((".", "]."))
        assert getattr(SampleRequest(), option.name) == option.default
        if option.range is not None and isinstance(option.default, int | float):
            assert option.default in option.range, option.name
    numbers = [o.name for o in options if o.type in (int, float, int | None, float | None)]
    assert numbers
    assert all(o.range is not None for o in options if o.name in numbers)


def test_declarations_cost_no_torch_and_agree_with_what_they_stand_for() -> None:
    code = "import sys, sfumato.pipeline.request; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(SOURCE)}).returncode == 0
    from sfumato.engine import tiles
    from sfumato.sampling import windows

    assert (DEFAULT_MEMORY, DEFAULT_OVERLAP) == (tiles.DEFAULT_MEMORY, windows.OVERLAP)


def test_a_range_prints_its_bounds() -> None:
    assert str(Range(0.0, 1.0)) == "a number from 0 to 1"
    assert str(Range(0.0, 1.0, above=True, below=True)) == "a number above 0 and below 1"
    assert str(Range(1, 65_536, whole=True)) == "a whole number from 1 to 65,536"
    assert True not in Range(0, 1)
    assert 0.5 not in Range(0, 1, whole=True)
