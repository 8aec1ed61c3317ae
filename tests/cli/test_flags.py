"""Options are declared once: the command line's flags are those of the request, with its defaults, ranges and help."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

import sfumato
from command_line import Command
from sfumato.cli import app
from sfumato.cli.edit import EditFlags
from sfumato.cli.flags import Flag, flag, flags_of
from sfumato.cli.forms import OF_A_PATH, OF_A_TASK, PYTHON_ONLY, SAMPLING, request_flags
from sfumato.cli.guides import GuideFlags
from sfumato.cli.inpaint import InpaintFlags
from sfumato.cli.sample_codes import CodeFlags
from sfumato.errors import UserError
from sfumato.pipeline.options import Option, Range, options_of
from sfumato.pipeline.request import ClassifierGuidance, ImageGuidance, Projection, SampleRequest

OPTIONS = {option.name: option for option in options_of(SampleRequest)}
FLAGS: dict[str, Flag] = {
    one.option.name: one
    for one in [*flags_of(InpaintFlags), *flags_of(EditFlags), *flags_of(GuideFlags), *request_flags(*SAMPLING)]
    if one.option.name in OPTIONS
}
COMMAND: Any = typer.main.get_command(app)


def commands(group: Any = COMMAND, words: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command by its words."""
    found: dict[tuple[str, ...], Any] = {}
    for name, one in group.commands.items():
        found |= commands(one, (*words, name)) if hasattr(one, "commands") else {(*words, name): one}
    return found


def params(*words: str) -> dict[str, Any]:
    return {param.name: param for param in commands()[words].params}


def test_every_option_is_reachable() -> None:
    assert OPTIONS.keys() == {*SAMPLING, *OF_A_PATH, *OF_A_TASK, *PYTHON_ONLY}
    assert FLAGS.keys() == OPTIONS.keys() - set(PYTHON_ONLY)
    assert {*SAMPLING, *OF_A_PATH} <= params("sample").keys()
    assert "strength" in params("edit")
    assert "jumps" in params("inpaint").keys() & params("outpaint").keys()
    for name in PYTHON_ONLY:
        assert OPTIONS[name].range is None


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_is_its_field(name: str) -> None:
    option, one = OPTIONS[name], FLAGS[name]
    assert one.option.help == option.help
    assert one.option.range == option.range
    assert one.option.group == option.group
    param = params("inpaint" if name == "jumps" else "edit" if name == "strength" else "sample")[name]
    expected = "How far the image is noised" if name == "strength" else one.form.help or option.help
    assert param.help.startswith(expected)
    if name not in ("strength", "seed"):  # edit has another strength, and sample tells whether a seed is given
        assert one.value(param.default) == option.default == getattr(SampleRequest(), name)


@pytest.mark.parametrize("option", [o for o in OPTIONS.values() if o.name in FLAGS and o.range], ids=lambda o: o.name)
def test_a_number_outside_its_range_names_the_flag(option: Option) -> None:
    one = FLAGS[option.name]
    typed: Any = "-7" if one.form.type is str else -7
    if option.name == "guidance":
        typed = "1e9"
    elif option.name == "seeds":
        typed = "3,-99999999999999999999"
    elif option.name in ("autoguide_scale", "seed"):
        typed = -(10**20)
    with pytest.raises(UserError, match=f"^{one.title} (is )?(about )?'?-?[0-9]"):
        one.value(typed)


def test_guidance_of_other_networks_has_the_ranges_of_its_dataclasses() -> None:
    declared = {one.option.name: one.option for one in flags_of(GuideFlags)}
    for name, owner in (("classifier_scale", ClassifierGuidance), ("image_guidance_scale", ImageGuidance)):
        (scale,) = options_of(owner)
        assert dataclasses.replace(declared[name], name="scale") == scale
    for one in options_of(Projection):
        assert one.range is not None
        with pytest.raises(
            UserError, match=rf"^--apg '{one.name}=1e9': {one.name} is 1e\+09: give {re.escape(str(one.range))}$"
        ):
            FLAGS["projection"].value(f"{one.name}=1e9")
    assert FLAGS["projection"].value("limit=7.5,momentum=-0.5") == Projection(limit=7.5, momentum=-0.5)


def test_the_choice_of_codes_has_the_defaults_of_its_dataclass() -> None:
    from sfumato.baselines.sampling import Choice

    assert {one.option.name: one.option.default for one in flags_of(CodeFlags)} == dataclasses.asdict(Choice())


def test_a_command_is_made_of_its_declarations() -> None:
    from sfumato.cli.flags import REQUIRED, command

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own:
        model: Path = flag(REQUIRED, "what to sample", "A model.", metavar="MODEL", argument=True)
        frames: int = flag(3, "output", "Frames.", Range(2, 9, whole=True))

    seen: list[tuple[Own, dict[str, Any]]] = []

    @command(Own, request_flags("steps", "interval", steps=7))
    def made(own: Own, options: dict[str, Any]) -> None:
        """Make."""
        seen.append((own, options))

    small = typer.Typer()
    small.command()(made)
    run: Any = typer.main.get_command(small)
    run(["m", "--interval", "0.2,0.4"], standalone_mode=False)
    assert seen == [(Own(model=Path("m"), frames=3), {"steps": 7, "interval": (0.2, 0.4)})]
    with pytest.raises(UserError, match=r"^--frames is 10: give a whole number from 2 to 9$"):
        run(["m", "--frames", "10"], standalone_mode=False)
    with pytest.raises(UserError, match=r"^--steps is 0: give a whole number from 1 to 10,000$"):
        run(["m", "--steps", "0"], standalone_mode=False)


def test_no_help_imports_torch_or_pydantic() -> None:
    code = f"""
import sys
from sfumato.cli import main
for words in {[list(words) for words in [(), *commands()]]!r}:
    try:
        main([*words, "--help"])
    except SystemExit as stopped:
        assert not stopped.code, words
    heavy = {{"torch", "pydantic", "PIL", "numpy"}} & sys.modules.keys()
    assert not heavy, (words, heavy)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(sfumato.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == len(commands()) + 1


def test_the_common_options_come_first_in_a_long_help(command: Command) -> None:
    shown = command("sample", "--help").out
    sections = ["Arguments:", "Options:", "What to sample:", "Guidance:", "Sampler:", "Output:", "Machine:"]
    places = [shown.index(f"\n{section}\n") for section in sections]
    assert places == sorted(places)
    common = shown[places[1] : places[2]]
    order = ["--out", "--label", "--count", "--seed", "--size", "--negative", "--guidance", "--sampler", "--steps"]
    found = [common.index(f"{name} ") for name in order]
    assert found == sorted(found)
    assert "--eta" not in common
    assert "Prompts; omit for unconditional samples." in shown


def test_flags_of_a_configuration_are_its_fields() -> None:
    from sfumato.cli.distill_decoder import DistillFlags
    from sfumato.cli.schema_flags import range_of, schema_fields
    from sfumato.cli.study import StudyFlags
    from sfumato.cli.study_latents import LatentsFlags
    from sfumato.limits import MOST
    from sfumato.studies.latents.plan import LatentsStudyConfig
    from sfumato.studies.plan import StudyConfig
    from sfumato.training.distillation import Distillation

    for flags, schema, names in (
        (DistillFlags, Distillation, ("channels", "batch", "seed")),
        (LatentsFlags, LatentsStudyConfig, ("minutes", "longest", "seeds", "steps", "measured", "samples")),
        (StudyFlags, StudyConfig, ("seeds", "parameters", "channels", "perceptual", "samples")),
    ):
        options = {one.option.name: one.option for one in flags_of(flags)}
        source = f"{schema.__module__.removeprefix('sfumato.')}:{schema.__name__}"
        for name in names:
            assert options[name].default == schema.model_fields[name].default
            assert options[name].range == range_of(name, schema_fields(source)[name])
            if name in MOST:
                assert options[name].range.high <= MOST[name]  # type: ignore[union-attr]  # a whole number
    assert options["channels"].range == Range(8, 16_384, whole=True)
    assert schema_fields("training.distillation:Distillation")["minutes"].help.startswith("Train for ")
