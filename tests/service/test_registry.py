"""The models of a service by name: folders, and those inside the package."""

from pathlib import Path

import pytest

from sfumato.service.errors import RefusedError
from sfumato.service.registry import Registry, model_view


def test_a_shipped_model_has_its_name_and_stands_last(folders: dict[str, Path]) -> None:
    registry = Registry([Path("zoo:toy"), folders["text"]])
    assert [one.id for one in registry.list()] == ["text", "zoo:toy"]
    view = model_view(registry.get("zoo:toy"), False, None)
    assert view["example"] == "a large red circle on a white background"
    assert view["description"].startswith("Small toy world")
    assert view["tasks"][0] == "sample"
    assert model_view(registry.get("text"), False, None)["example"] is None


def test_names_are_one_each_and_others_refused(folders: dict[str, Path]) -> None:
    registry = Registry([folders["text"], folders["label"]])
    assert registry.add(folders["text"]).id == "text"  # the same folder
    with pytest.raises(RefusedError, match="model 'nope' is not one of text, label"):
        registry.get("nope")
    with pytest.raises(RefusedError, match="model is missing"):
        registry.get(None)
