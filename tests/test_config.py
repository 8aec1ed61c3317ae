"""Configurations: strict, overridable, and errors that help."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from sfumato.config import apply_overrides, load_config, parse, read_source
from sfumato.errors import UserError
from sfumato.schema import Schema


class Round(Schema):
    kind: Literal["round"] = "round"
    radius: int = 3


class Square(Schema):
    kind: Literal["square"] = "square"
    side: int = 3


class Root(Schema):
    shape: Annotated[Round | Square, Field(discriminator="kind")] = Round()
    steps: int = 3
    nested: Square | None = None
    several: dict[str, Annotated[Round | Square, Field(discriminator="kind")]] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"step": 3}, r"unknown key 'step'; did you mean 'steps'\?"),
        ({"shape": {"kind": "square", "sde": 3}}, r"unknown key 'shape.sde'; did you mean 'side'\?"),
        ({"a[b": 3}, r"unknown key 'a\[b'; known keys: "),
        ({"[]": 3}, r"unknown key '\[\]'; known keys: "),
        ({"nested": {"list[x]": 3}}, r"unknown key 'nested.list\[x\]'; known keys: kind, side"),
        ({"nested": {"qqqq": 3}}, r"unknown key 'nested.qqqq'; known keys: kind, side"),
        ({"steps": "many"}, r"steps: .*integer.*got 'many'"),
        ({"shape": {"kind": "hexagon"}}, r"shape: .*hexagon.*expected tags: 'round', 'square'"),
    ],
)
def test_a_mistake_is_named_with_the_way_out(raw: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(raw, Root, "x.yaml")


def test_overrides_reach_nested_keys_and_leave_the_source_alone() -> None:
    raw = {"shape": {"kind": "round", "radius": 1}}
    changed = apply_overrides(raw, ["shape.radius=7", "nested.side=2", "steps=9"])
    assert changed == {"shape": {"kind": "round", "radius": 7}, "nested": {"side": 2}, "steps": 9}
    assert raw == {"shape": {"kind": "round", "radius": 1}}
    assert parse(changed, Root, "x").nested == Square(side=2)


@pytest.mark.parametrize("path", ["shape", "several.one"])
def test_another_kind_drops_the_fields_of_the_kind_before(path: str) -> None:
    group = {"kind": "round", "radius": 1}
    raw = {"shape": group} if path == "shape" else {"several": {"one": group}}
    messages: list[str] = []
    changed = apply_overrides(raw, [f"{path}.kind=square", f"{path}.side=7"], Root, messages.append)
    parsed = parse(changed, Root, "x")
    assert (parsed.shape if path == "shape" else parsed.several["one"]) == Square(side=7)
    assert messages == [f"{path}.kind=square: {path}.radius do not apply to it, dropped"]
    assert apply_overrides(raw, [f"{path}.kind=round"], Root, messages.append) == raw
    assert len(messages) == 1


def test_a_setting_typed_beside_another_kind_is_still_an_error() -> None:
    raw = {"shape": {"kind": "round", "radius": 1}}
    with pytest.raises(UserError, match=r"unknown key 'shape.radius'"):
        parse(apply_overrides(raw, ["shape.radius=2", "shape.kind=square"], Root), Root, "x")


@pytest.mark.parametrize("override", ["steps", "=3", "a..b=3", "steps.deeper=1"])
def test_a_malformed_override_is_refused(override: str) -> None:
    with pytest.raises(UserError, match="override"):
        apply_overrides({"steps": 3}, [override])


def test_one_key_has_one_value() -> None:
    assert apply_overrides({}, ["steps=3", "steps=3"]) == {"steps": 3}
    with pytest.raises(UserError, match=r"'shape\.side' is given twice, as '1' and as '2': keep one"):
        apply_overrides({}, ["shape.side=1", "steps=3", "shape.side=2"])


def test_sources_that_are_not_there_are_named(tmp_path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_source(str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match="zoo"):
        read_source("zoo:toy/txet")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="must be a mapping"):
        load_config(str(tmp_path / "list.yaml"), [], Root)
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(str(tmp_path / "bad.yaml"), [], Root)
