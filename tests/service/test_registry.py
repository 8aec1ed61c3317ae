"""The models of a service by name: folders, and those inside the package."""

from pathlib import Path

import pytest

from sfumato.service.errors import RefusedError
from sfumato.service.registry import Registry, model_view


def test_models_of_the_package_have_their_names_and_stand_last(folders: dict[str, Path]) -> None:
    registry = Registry([Path("zoo:emoji"), folders["text"], Path("zoo:toy")])
    assert [one.id for one in registry.list()] == ["text", "zoo:emoji", "zoo:toy"]  # otherwise as they were given
    for name, example, described in (
        ("toy", "a large red circle on a white background", "Small toy world"),
        ("emoji", "red heart", "Emoji"),
    ):
        view = model_view(registry.get(f"zoo:{name}"), False, None)
        assert (view["shipped"], view["example"]) == (name, example)
        assert view["description"].startswith(described)
        assert view["tasks"][0] == "sample"
    assert model_view(registry.get("text"), False, None)["example"] is None


def test_names_are_one_each_and_others_refused(folders: dict[str, Path]) -> None:
    registry = Registry([folders["text"], folders["label"]])
    assert registry.add(folders["text"]).id == "text"  # the same folder
    with pytest.raises(RefusedError, match="model 'nope' is not one of text, label"):
        registry.get("nope")
    with pytest.raises(RefusedError, match="model is missing"):
        registry.get(None)
