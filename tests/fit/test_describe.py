"""What `sfumato fit` learns of a folder before it plans."""

from pathlib import Path

import pytest
from PIL import Image

from sfumato.data.folder_config import FolderConfig
from sfumato.fit import describe


def test_of_a_large_folder_a_part_is_looked_at_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        Image.new("RGB", (16, 16), (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(describe, "LOOKED_AT", 4)
    found, facts = describe.describe(FolderConfig(path=tmp_path, size=16))
    assert facts.total == 9
    assert found.dataset.notes[0] == "the look at the data is of 4 of 9 images"
    assert not any("not used" in note for note in found.dataset.notes)
