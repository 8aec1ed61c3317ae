"""The facts that `sfumato fit` gathers about a folder before it plans."""

from pathlib import Path

import pytest
from PIL import Image

from sfumato.data.folder_config import FolderConfig
from sfumato.data.shards.config import ShardsConfig
from sfumato.data.shards.writing import write_shards
from sfumato.data.table import open_images
from sfumato.fit import describe
from sfumato.fit.folder import digest_of


@pytest.mark.parametrize("kind", ["shards", "pattern"])
def test_shards_have_the_facts_of_their_folder(kind: str, tmp_path: Path) -> None:
    for number, size in enumerate([(16, 16), (32, 16), (16, 40), (24, 24)]):
        Image.new("RGB", size, (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"red {number}, left")
    folder = FolderConfig(path=tmp_path, size=16)
    write_shards(open_images(folder), tmp_path / "shards", per_shard=3, in_order=True)
    place = tmp_path / "shards" if kind == "shards" else tmp_path / "shards" / "{000000..000001}.tar"
    _, facts = describe.describe(ShardsConfig(path=str(place), size=16), cache=tmp_path / "cache")
    _, expected = describe.describe(folder.model_copy(update={"leave_out": ("shards",)}))
    assert facts == expected
    assert facts.cropped == pytest.approx((0 + 1 / 2 + 24 / 40 + 0) / 4)
    assert facts.sided == "red 0, left"
    assert digest_of(place) != digest_of(tmp_path)


def test_of_a_large_folder_a_part_is_looked_at_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        Image.new("RGB", (16, 16), (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(describe, "LOOKED_AT", 4)
    found, facts = describe.describe(FolderConfig(path=tmp_path, size=16))
    assert facts.total == 9
    assert found.dataset.notes[0] == "the look at the data is of 4 of 9 images"
    assert not any("not used" in note for note in found.dataset.notes)
