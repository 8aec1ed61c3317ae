"""The identity of a file: its whole content, read once."""

import os
import time
from pathlib import Path

import pytest
import torch

from data.make_images import noise, save
from sfumato.data import contents
from sfumato.data.contents import STORE, file_hashes
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.pixels import keep_decoded

TICK = 0.02
"""Seconds: longer than the tick of the clock that files are stamped with."""


def opened(root: Path, cache: Path | None = None) -> FolderDataset:
    return FolderDataset(FolderConfig(path=root, size=64), cache=cache)


def repaint(path: Path) -> None:
    """Another byte in the middle of the file, its size and its time of modification as before."""
    before = path.stat()
    with path.open("rb+") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)[0]
        file.seek(before.st_size // 2)
        file.write(bytes([byte ^ 0x80]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("ending", ["bmp", "tif", "ppm", "tga"])
def test_an_image_repainted_in_the_middle_is_another(tmp_path: Path, ending: str) -> None:
    root, cache = tmp_path / "set", tmp_path / "cache"
    root.mkdir()
    noise(0, 64, 64).save(root / f"a.{ending}")
    before = keep_decoded(opened(root, cache), cache)
    known = before.fingerprint()
    repaint(root / f"a.{ending}")
    after = keep_decoded(opened(root, cache), cache)
    assert after.fingerprint() != known
    assert not torch.equal(after[0].image, before[0].image)
    assert torch.equal(after[0].image, opened(root)[0].image)


def test_the_folder_may_move(tmp_path: Path) -> None:
    save(tmp_path / "set", ["a.png", "x/b.png"])
    before = opened(tmp_path / "set").fingerprint()
    (tmp_path / "set").rename(tmp_path / "moved")
    assert opened(tmp_path / "moved").fingerprint() == before


def test_files_are_read_once_and_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_SETTLED", 0)  # else these files are too young for their hashes to be kept
    read: list[str] = []
    hashed = contents.file_hash

    def counted(path: Path) -> bytes:
        read.append(path.name)
        return hashed(path)

    monkeypatch.setattr(contents, "file_hash", counted)
    cache, root = tmp_path / "cache", tmp_path / "set"
    save(root, ["a.png", "b.png"])
    paths = [root / "a.png", root / "b.png"]
    time.sleep(TICK)
    first = file_hashes(paths, cache)
    assert sorted(read) == ["a.png", "b.png"]
    root.rename(tmp_path / "moved")
    paths = [tmp_path / "moved" / path.name for path in paths]
    assert file_hashes(paths, cache) == first
    assert len(read) == 2
    time.sleep(TICK)
    repaint(paths[1])
    time.sleep(TICK)
    assert file_hashes(paths, cache) == [first[0], hashed(paths[1])] != first
    assert read[2:] == ["b.png"]
    (cache / STORE).write_bytes((cache / STORE).read_bytes()[:-1])  # a damaged store is none
    assert file_hashes(paths, cache)[0] == first[0]
    assert sorted(read[3:]) == ["a.png", "b.png"]


def test_a_file_as_young_as_its_hash_is_read_again(tmp_path: Path) -> None:
    save(tmp_path, ["a.png"])
    before = file_hashes([tmp_path / "a.png"], tmp_path / "cache")
    assert not (tmp_path / "cache" / STORE).exists()
    repaint(tmp_path / "a.png")  # within one tick of the clock, perhaps
    assert file_hashes([tmp_path / "a.png"], tmp_path / "cache") != before


def test_hashes_of_several_sets_share_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_SETTLED", -(10**12))
    save(tmp_path, ["a.png", "b.png"])
    for name in ("a.png", "b.png"):
        file_hashes([tmp_path / name], tmp_path / "cache")
    monkeypatch.setattr(contents, "file_hash", lambda path: pytest.fail("read again"))
    assert all(file_hashes([tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "cache"))
    assert file_hashes([tmp_path / "gone.png"], tmp_path / "cache") == [b""]
