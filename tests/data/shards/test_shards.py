"""Shards are read as the folder that they were made of; damaged ones are named and skipped, missing ones refused."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from data.make_images import metadata, save
from data.shards.make_shards import folder, opened, pixels, png, samples, sharded, shards, tar
from sfumato.cli.real_images import opened_data
from sfumato.data.conditions.boxes import FolderBoxes
from sfumato.data.conditions.config import BoxesConfig, ConditionsConfig, MapsConfig
from sfumato.data.conditions.maps import FolderMaps
from sfumato.data.containers import storage
from sfumato.data.containers.addresses import expanded
from sfumato.data.containers.index import DamagedContainer
from sfumato.data.dataset import UnreadableImage
from sfumato.data.shards.tar import members
from sfumato.data.shards.writing import write_shards
from sfumato.errors import UserError


def test_a_folder_and_its_shards_are_one_set(tmp_path: Path) -> None:
    root = tmp_path / "images"
    save(root, [f"{kind}/{i}.png" for kind in ("cats", "dogs") for i in range(5)])
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        path.with_suffix(".txt").write_text(f"number {number}\nmore")
    one, other = folder(root), sharded(root, tmp_path / "shards")
    assert [path.name for path in sorted((tmp_path / "shards").glob("*.tar"))] == [f"{i:06d}.tar" for i in range(3)]
    assert (other.classes, other.fields, len(other)) == (("cats", "dogs"), ("text", "label"), 10)
    theirs = {example.fields["text"]: example for example in map(other.__getitem__, range(10))}
    for row in range(10):
        example = one[row]
        assert pixels(theirs[example.fields["text"]]) == pixels(example)
        assert theirs[example.fields["text"]].fields == example.fields
    order = [example.fields["text"] for example in map(other.__getitem__, range(10))]
    assert order != sorted(order), "classes are mixed within a shard"
    blocks = other.blocks()
    assert blocks is not None
    assert blocks.starts == (0, 4, 8, 10)


def test_several_captions_columns_maps_and_boxes_are_kept(tmp_path: Path) -> None:
    root = tmp_path / "images"
    save(root, ["a.png", "b.png"], 8, 16)
    save(root / "maps", ["a.png", "b.png"], 8, 16)
    from PIL import Image

    for name, level in (("a", 0), ("b", 1)):
        Image.new("L", (16, 8), level).save(root / "maps" / f"{name}.png")
    (root / "classes.txt").write_text("sky\nsea\n")
    box = [{"label": "sea", "bbox": [2, 2, 4, 4]}]
    metadata(
        root,
        [
            {"file_name": "a.png", "text": ["one", "two"], "season": 3, "boxes": box},
            {"file_name": "b.png", "text": "three", "season": 4, "boxes": []},
        ],
    )
    conditions = ConditionsConfig(map=MapsConfig(), boxes=BoxesConfig())
    options = {"leave_out": ["maps", "classes.txt"], "columns": ["season"]}
    (tmp_path / "shards").mkdir()
    write_shards(folder(root, **options), tmp_path / "shards", conditions=conditions)
    one, other = folder(root, **options), opened(tmp_path / "shards", columns=["season"])
    rows = {other[row].fields["season"]: row for row in range(2)}
    choices = other.caption_choices()
    assert choices is not None
    assert choices[rows[3]] == (("one", 0.5), ("two", 0.5))
    assert other[rows[4]].fields["text"] == "three"
    for source, config in ((FolderMaps, MapsConfig()), (FolderBoxes, BoxesConfig())):
        theirs, ours = source(one, config), source(other, config)  # type: ignore[operator]
        assert theirs.describe().names == ours.describe().names
        for row in range(2):
            assert repr(theirs(row, None)) == repr(ours(rows[3 + row], None))
    bare = opened(tar(tmp_path / "bare" / "0.tar", samples(0, 2)).parent)
    with pytest.raises(UserError, match=r"2 images have no label map: the first is 0/000000000.png, expected as"):
        bare.places.companions(bare.scan.files, "maps")


def test_the_layout_of_img2dataset_and_webdataset(tmp_path: Path) -> None:
    found = opened(shards(tmp_path, [2, 1]))
    assert [found[row].fields["text"] for row in range(3)] == ["caption 0", "caption 1", "caption 2"]
    assert "url" in found.scan.unread_columns
    numbered = [("n01/x.png", png(1)), ("n01/x.cls", b"7"), ("n02/y.png", png(2)), ("n02/y.cls", b"12")]
    assert opened(tar(tmp_path / "own" / "a.tar", numbered)).classes == ("7", "12")
    classed = opened(tar(tmp_path / "own" / "b.tar", [("cat/x.png", png(1)), ("dog/y.png", png(2))]))
    assert classed.classes == ("cat", "dog"), "folders inside the tar file"
    no_text = opened(tar(tmp_path / "own" / "c.tar", [(n, c) for n, c in samples(0, 2) if not n.endswith("txt")]))
    assert no_text.captions() == ["caption 0", "caption 1"], "the caption in the table"


def test_webdataset_reads_what_we_write_and_we_what_it_writes(tmp_path: Path) -> None:
    web = pytest.importorskip("webdataset")
    save(tmp_path / "images", ["a/0.png", "b/1.png"])
    (tmp_path / "images" / "a" / "0.txt").write_text("first")
    sharded(tmp_path / "images", tmp_path / "ours")
    read = list(web.WebDataset(str(tmp_path / "ours" / "000000.tar"), shardshuffle=False))
    assert {sample["txt"] for sample in read if "txt" in sample} == {b"first"}
    assert sorted(sample["cls"] for sample in read) == [b"0", b"1"]
    with web.TarWriter(str(tmp_path / "theirs.tar")) as out:
        out.write({"__key__": "x", "png": png(1), "txt": "hello", "cls": 3, "json": {"text": "unused", "mood": 1}})
    found = opened(tmp_path / "theirs.tar")
    assert found[0].fields == {"text": "hello", "label": 0}
    assert found.classes == ("3",)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_pythons_tarfile(form: int, tmp_path: Path) -> None:
    long = "f" * 60 + "/" + ("ü" if form != tarfile.USTAR_FORMAT else "u") * 90 + ".png"
    path = tar(tmp_path / "a.tar", [("0.png", png(1)), (long, png(2)), ("empty.txt", b"")], form)
    with tarfile.open(path) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive]
    with path.open("rb") as file:
        found = [(m.name, m.start, m.size) for m in members(file, path.stat().st_size)]
    assert found == expected
    whole = path.read_bytes()
    end = expected[-1][1]
    for cut in range(0, end + 1, 173):
        with pytest.raises(DamagedContainer):
            list(members(io.BytesIO(whole[:cut]), cut))
    flipped = bytearray(whole)
    flipped[expected[1][1] - 400] ^= 1  # within the second header
    with pytest.raises(DamagedContainer, match=r"not a tar header|malformed|cut off"):
        list(members(io.BytesIO(bytes(flipped)), len(flipped)))


def test_a_corrupt_shard_in_ten_is_named_and_skipped_and_more_are_refused(tmp_path: Path) -> None:
    shards(tmp_path, [2] * 10)
    bad = tmp_path / "00003.tar"
    bad.write_bytes(bad.read_bytes()[:1600])
    found = opened(tmp_path)
    assert len(found) == 18
    assert any("1 of 10 shards is skipped: the first is" in note and "cut off" in note for note in found.notes)
    assert (str(bad), "the shard is skipped: it is cut off within '000000006.png'") in found.unreadable
    with pytest.raises(UserError, match=r"1 of 10 shards cannot be read, more than data.most_damaged = 0 allows"):
        opened(tmp_path, most_damaged=0)
    (tmp_path / "00004.tar").write_bytes(b"not a tar file" * 100)
    with pytest.raises(UserError, match=r"2 of 10 .* = 0\.1 allows: the first is .*00003\.tar \(it is cut off"):
        opened(tmp_path)
    assert len(opened(tmp_path, most_damaged=2)) == 16
    (tmp_path / "00005.tar").unlink()
    with pytest.raises(UserError, match=r"1 of 10 shards do not exist, the first is .*00005\.tar"):
        opened(f"{tmp_path}/{{00000..00009}}.tar")


def test_bad_samples_are_left_out_with_the_reason(tmp_path: Path) -> None:
    good = samples(0, 2)
    bad = [
        ("3.png", b"\x89PNG broken"),
        ("4.png", b""),
        ("5.png", png(5)),
        ("5.json", b'{"a": 1, "a": 2}'),
        ("6.png", png(6)),
        ("6.txt", b"\xff\xfe\xff"),
        ("7.txt", b"no image"),
        ("8.png", png(8)),
        ("8.mp3", b"noise"),
        ("._9.png", b"hidden"),
        ("8.jpg", png(8)),
    ]
    found = opened(tar(tmp_path / "a.tar", [*good, *bad]))
    assert len(found) == 3
    reasons = dict(found.unreadable)
    assert reasons["a/3.png"] == "it is a damaged PNG image"
    assert reasons["a/4.png"] == "the file is empty"
    assert "has the key 'a' twice" in reasons["a/5.png"]
    assert "6.txt" in reasons["a/6.png"]
    assert {name for name, _ in found.scan.left_out} == {"a/7.txt", "a/8.mp3", "a/8.jpg"}


def test_a_shard_that_changes_or_vanishes_while_it_is_used(tmp_path: Path) -> None:
    found = opened(shards(tmp_path, [2]))
    before = found.fingerprint()
    tar(tmp_path / "00000.tar", samples(0, 2, {"new": 1}))
    assert opened(tmp_path).fingerprint() == before, "columns that are not read do not matter"
    assert set(found.places.hashes(found.scan.files)) == {b""}, "the old index no longer holds"
    (tmp_path / "00000.tar").unlink()
    with pytest.raises(UnreadableImage, match="it does not exist any more"):
        found[0]


def test_the_index_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = shards(tmp_path / "shards", [2, 3]), tmp_path / "cache"
    monkeypatch.setattr(storage, "is_settled", lambda path: True)
    first = opened(root, cache)
    monkeypatch.setattr("sfumato.data.shards.reading.members", lambda *a: pytest.fail("a shard is read again"))
    again = opened(root, cache)
    assert (again.scan, again.fingerprint()) == (first.scan, first.fingerprint())
    for kept in (cache / "indices").iterdir():
        kept.write_text("{")
    monkeypatch.undo()
    assert opened(root, cache).scan == first.scan, "a damaged index is replaced"


def test_images_to_measure_against_may_be_in_shards(tmp_path: Path) -> None:
    found = opened_data(str(shards(tmp_path, [2, 1])), (4, 6), True, "black")
    assert len(found) == 3
    assert found[0].image.shape == (3, 4, 6)


def test_patterns() -> None:
    assert expanded("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert expanded("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    for wrong, message in (("{5..1}", "upwards"), ("{0..9999999}", "1,000,000"), ("{x}", "not a range")):
        with pytest.raises(UserError, match=message):
            expanded(wrong)


def test_places_without_shards(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names no shards"):
        opened(tmp_path)
    (tmp_path / "a.tar.gz").write_bytes(b"x")
    with pytest.raises(UserError, match="is compressed"):
        opened(tmp_path / "a.tar.gz")
    with pytest.raises(UserError, match="contain no image that can be read"):
        opened(tar(tmp_path / "b.tar", [("a.txt", b"x")]))


def test_writing_goes_on_where_it_stopped_and_refuses_other_plans(tmp_path: Path) -> None:
    save(tmp_path / "images", [f"{i}.png" for i in range(6)])
    out = tmp_path / "shards"
    out.mkdir()
    source = folder(tmp_path / "images")
    write_shards(source, out, 2)
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "000001.tar").unlink()
    kept = (out / "000000.tar").stat().st_mtime_ns
    assert write_shards(source, out, 2).shards == 3
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole, "the same bytes at any time"
    assert (out / "000000.tar").stat().st_mtime_ns == kept
    with pytest.raises(UserError, match="holds shards of other images or settings"):
        write_shards(source, out, 3)
    assert json.loads((out / "shards.json").read_text())["images"] == 6
