"""Parquet files of Hugging Face's layout and LMDB databases of LSUN's, as sets of images."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from data.make_images import save
from data.shards.make_shards import folder, pixels, png
from sfumato.data.image_dataset import ImageDataset
from sfumato.data.kinds import kind_of
from sfumato.data.loader import Loader
from sfumato.data.table import open_images
from sfumato.data.tables.config import LmdbConfig, ParquetConfig
from sfumato.data.tables.parquet import parquet_addresses
from sfumato.errors import UserError

CAT, DOG = "cat", "dog"


def table(path: Path, count: int, first: int = 0, group: int = 2, image: str = "image", **more: list[Any]) -> Path:
    """A file as `datasets` writes it: a structure of bytes and path, class numbers with names in the metadata."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    numbers = range(first, first + count)
    columns = {
        image: [{"bytes": png(number), "path": f"{number}.png"} for number in numbers],
        "text": [f"caption {number}" for number in numbers],
        "label": [number % 2 for number in numbers],
        **more,
    }
    about = {"info": {"features": {"label": {"names": [CAT, DOG], "_type": "ClassLabel"}}}}
    made = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path, row_group_size=group)
    return path


def opened(place: Path, cache: Path | None = None, **options: Any) -> ImageDataset:
    config = ParquetConfig.model_validate({"path": str(place), "size": 8, **options})
    return open_images(config, cache)


def test_a_parquet_file_is_the_folder_of_its_images(tmp_path: Path) -> None:
    table(tmp_path / "set" / "train-0.parquet", 5)
    table(tmp_path / "set" / "train-1.parquet", 3, first=5, season=[1, 2, 3], made=[b"raw", None, b""])
    found = opened(tmp_path / "set", tmp_path / "cache", together=1)
    save(tmp_path / "images", [f"{i}.png" for i in range(8)])
    near = folder(tmp_path / "images")
    assert [pixels(found[i]) for i in range(8)] == [pixels(near[i]) for i in range(8)]
    assert found.classes == (CAT, DOG)
    assert found[3].fields == {"text": "caption 3", "label": 1}
    blocks = found.blocks()
    assert blocks is not None
    assert blocks.starts == (0, 2, 4, 5, 7, 8), "groups of rows"
    assert opened(tmp_path / "set", tmp_path / "cache").fingerprint() == found.fingerprint()
    with Loader(found, 3, seed=1, workers=2) as data:
        rows = [row for _ in range(8) for row in next(data).index]
    assert sorted(rows[:8]) == sorted(rows[8:16]) == list(range(8))
    assert kind_of(str(tmp_path / "set")) == "parquet"


def test_tables_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", 2, image="photo")
    with pytest.raises(UserError, match=r"has no column 'image': set data.image_column to one of photo, text, label"):
        opened(path)
    assert len(opened(path, image_column="photo")) == 2
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"1 of 1 tables cannot be read.*no whole Parquet file"):
        opened(path, image_column="photo")
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    cells = [{"bytes": None, "path": "x.png"}, {"bytes": b"junk", "path": None}, {"bytes": png(1), "path": None}]
    pq.write_table(pa.table({"image": cells}), tmp_path / "b.parquet")
    found = opened(tmp_path / "b.parquet")
    assert len(found) == 1
    reasons = [reason for _, reason in found.unreadable]
    assert reasons == ["the row has no bytes, only the path 'x.png'", "it is not an image of a known format"]


def test_names_of_the_hub_are_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    there = ["hf://datasets/a/b/data/train-0.parquet", "hf://datasets/a/b/data/test-0.parquet"]
    monkeypatch.setattr("sfumato.data.tables.parquet.addresses_of", lambda path, ending: (asked.append(path), there)[1])
    assert parquet_addresses(ParquetConfig(path="hub:a/b@main", split="train")) == there[:1]
    assert asked == ["hf://datasets/a/b@main/**/*.parquet"]
    with pytest.raises(UserError, match=r"data.split is 'validation'"):
        parquet_addresses(ParquetConfig(path="hub:a/b", split="validation"))
    with pytest.raises(UserError, match="give hub:OWNER/NAME"):
        parquet_addresses(ParquetConfig(path="hub:a"))
    assert kind_of("hub:a/b") == "parquet"


def test_a_database_of_lsun(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    for name, first in (("church_outdoor_train_lmdb", 0), ("bedroom_train_lmdb", 2)):
        with lmdb.open(str(tmp_path / name), map_size=2**24) as made, made.begin(write=True) as transaction:
            for number in range(first, first + 2):
                stream = io.BytesIO()
                from data.make_images import noise

                noise(number).save(stream, "WEBP", lossless=True)
                transaction.put(f"{number:040x}".encode(), stream.getvalue())
            transaction.put(b"zz", b"no image")
    found = open_images(LmdbConfig(path=str(tmp_path), size=8))
    assert found.classes == ("bedroom", "church_outdoor")
    save(tmp_path / "images", [f"{i}.png" for i in range(4)])
    near = folder(tmp_path / "images")
    assert [pixels(found[i]) for i in range(4)] == [pixels(near[i]) for i in (2, 3, 0, 1)]
    assert [name for name, _ in found.unreadable] == ["bedroom_train/zz", "church_outdoor_train/zz"]
    alone = tmp_path / "bedroom_train_lmdb"
    assert kind_of(str(alone)) == "lmdb"
    assert open_images(LmdbConfig(path=str(alone), size=8)).classes == ("bedroom",)
    (alone / "data.mdb").write_bytes(b"junk")
    with pytest.raises(UserError, match="1 of 1 databases cannot be read"):
        open_images(LmdbConfig(path=str(tmp_path / "bedroom_train_lmdb" / ".." / "bedroom_train_lmdb"), size=8))
    with pytest.raises(UserError, match=r"is not an LMDB database: give the folder that holds data\.mdb"):
        open_images(LmdbConfig(path=str(tmp_path / "images"), size=8))
