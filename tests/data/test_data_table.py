"""Kinds of data by their name in a configuration."""

from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from data.make_images import save

pytest.importorskip("sfumato.data.toyworld")

from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.table import DataConfig, open_dataset


def test_kinds_by_name(tmp_path: Path) -> None:
    adapter: TypeAdapter[DataConfig] = TypeAdapter(DataConfig)
    folder = adapter.validate_python({"kind": "folder", "path": str(tmp_path), "size": [8, 16]})
    assert isinstance(folder, FolderConfig)
    assert folder.height_width == (8, 16)
    assert adapter.validate_json(folder.model_dump_json()) == folder
    assert adapter.validate_python({"kind": "toy"}).kind == "toy"
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": "tape"})


def test_opening_keeps_decoded_pixels_where_asked(tmp_path: Path) -> None:
    save(tmp_path / "set", ["a.png"])
    config = FolderConfig(path=tmp_path / "set", size=8)
    assert isinstance(open_dataset(config), FolderDataset)
    assert not (tmp_path / "cache").exists()
    open_dataset(config, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
