"""Kept pixels: the same examples as decoding, made anew when files, framing or the kept bytes change."""

import errno
import json
import os
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from data.make_images import noise, save, truncated
from sfumato.data.contents import STORE
from sfumato.data.dataset import UnreadableImage
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.leftovers import remove_leftovers
from sfumato.data.loader import Loader
from sfumato.data.pixels import keep_decoded, prepared_bytes
from sfumato.errors import UserError
from sfumato.locks import exclusive


def opened(root: Path, **options: object) -> FolderDataset:
    return FolderDataset(FolderConfig.model_validate({"path": root, "size": 8, **options}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save(tmp_path / "set", ["cat/a.png", "dog/b.jpg", "cat/c.webp"], 10, 16)
    return tmp_path / "set"


def caches(folder: Path) -> list[Path]:
    """The content of a cache beside the kept hashes of files."""
    return sorted(path for path in folder.iterdir() if path.name != STORE) if folder.exists() else []


@pytest.mark.parametrize(
    "options", [{}, {"flip": True}, {"crop": "random", "flip": True}, {"resize": "pad"}, {"size": (4, 12)}]
)
def test_examples_and_variants_are_the_same_bytes(root: Path, tmp_path: Path, options: dict[str, object]) -> None:
    plain = opened(root, **options)
    kept = keep_decoded(opened(root, **options), tmp_path / "cache")
    assert kept.fingerprint() == plain.fingerprint()
    for i in range(3):
        assert torch.equal(kept[i].image, plain[i].image)
        assert kept[i].fields == plain[i].fields
        for seed in range(8):
            assert torch.equal(kept.variant(i, seed).image, plain.variant(i, seed).image)
    with Loader(plain, 4, seed=0) as a, Loader(kept, 4, seed=0) as b:
        assert all(torch.equal(next(a).images, next(b).images) for _ in range(4))


def test_kept_pixels_are_used_without_the_files(root: Path, tmp_path: Path) -> None:
    data = opened(root)
    kept = keep_decoded(data, tmp_path / "cache")
    for path in root.rglob("*.*"):
        path.unlink()
    assert kept[2].image.shape == (3, 8, 8)


def test_second_opening_reuses_and_changes_rebuild(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    built: list[int] = []

    def keep(**options: object) -> FolderDataset:
        built.clear()
        return keep_decoded(opened(root, **options), cache, progress=lambda done, total: built.append(done))

    keep()
    assert built == [1, 2, 3]
    keep()
    assert built == []
    keep(flip=True)  # applied to the kept pixels
    assert built == []
    keep(size=6)
    assert built == [1, 2, 3]
    noise(50, 10, 16).save(root / "cat/a.png")
    changed = keep()
    assert built == [1, 2, 3]
    assert torch.equal(changed[0].image, opened(root)[0].image)
    assert len(caches(cache)) == 3
    assert not [path for path in caches(cache) if path.name.startswith(".")]


@pytest.mark.parametrize("damage", ["flip", "cut", "header", "other decoder", "missing"])
def test_a_damaged_cache_is_made_again(root: Path, tmp_path: Path, damage: str) -> None:
    cache = tmp_path / "cache"
    save(root, ["cat/d.png", "cat/e.png"])  # so that not every image is among those decoded anew on opening
    data = opened(root)
    keep_decoded(data, cache)
    (place,) = caches(cache)
    pixels = bytearray((place / "pixels.bin").read_bytes())
    header = json.loads((place / "header.json").read_text())
    if damage == "flip":
        pixels[300] ^= 1
    elif damage == "cut":
        del pixels[-1]
    elif damage == "header":
        (place / "header.json").write_text("{")
    elif damage == "missing":
        (place / "table.npy").unlink()
    else:
        pixels[0] ^= 1
        (place / "header.json").write_text(json.dumps(header | {"crc32": zlib.crc32(bytes(pixels))}))
    (place / "pixels.bin").write_bytes(pixels)
    built: list[int] = []
    again = keep_decoded(data, cache, progress=lambda done, total: built.append(done))
    assert built == [1, 2, 3, 4, 5]
    assert all(torch.equal(again[i].image, data[i].image) for i in range(5))


def test_budget_is_respected(root: Path, tmp_path: Path) -> None:
    data = opened(root)
    assert prepared_bytes(data) == 3 * 3 * 8 * 8
    assert keep_decoded(data, tmp_path / "cache", budget=575) is data
    assert not caches(tmp_path / "cache")
    assert keep_decoded(data, tmp_path / "cache", budget=576) is not data
    assert prepared_bytes(opened(root, crop="random")) == 3 * 3 * 8 * 13


def test_a_full_disk_means_no_cache(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.data.pixels.shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**20})())
    data = opened(root)
    assert keep_decoded(data, tmp_path / "cache") is data


def test_unreadable_files_stay_unreadable(root: Path, tmp_path: Path) -> None:
    truncated(root / "cat/half.png")
    plain = opened(root)
    kept = keep_decoded(plain, tmp_path / "cache")
    assert [name for name, _ in kept.unreadable] == ["cat/half.png"]
    with pytest.raises(UnreadableImage, match=r"half\.png"):
        kept[2]
    kept = keep_decoded(plain, tmp_path / "cache")
    with Loader(plain, 4, seed=0) as a, Loader(kept, 4, seed=0) as b:
        for _ in range(4):
            x, y = next(a), next(b)
            assert x.index == y.index
            assert torch.equal(x.images, y.images)


def test_one_image_with_two_captions_is_kept_once(tmp_path: Path) -> None:
    save(tmp_path / "set", ["a.png"])
    (tmp_path / "set/metadata.jsonl").write_text('{"file_name": "a.png", "text": "1"}\n' * 2)
    kept = keep_decoded(opened(tmp_path / "set"), tmp_path / "cache")
    assert len(kept) == 1
    assert (caches(tmp_path / "cache")[0] / "pixels.bin").stat().st_size == 3 * 8 * 8


def test_a_file_that_changes_while_it_is_decoded_is_not_kept(root: Path, tmp_path: Path) -> None:
    def repaint(done: int, total: int) -> None:
        noise(70, 10, 16).save(root / "cat/a.png")

    with pytest.raises(UserError, match=r"1 of 3 images in .* changed while .*, the first is cat/a\.png"):
        keep_decoded(opened(root), tmp_path / "cache", progress=repaint)
    assert caches(tmp_path / "cache") == []
    assert torch.equal(keep_decoded(opened(root), tmp_path / "cache")[0].image, opened(root)[0].image)


def test_the_disk_that_fills_up_meanwhile_means_no_cache(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sfumato.data.pixels.os.fsync", full)
    messages: list[str] = []
    data = opened(root)
    assert keep_decoded(data, tmp_path / "cache", log=messages.append) is data
    assert caches(tmp_path / "cache") == []
    assert ["the free space" in line for line in messages] == [True]


def test_two_that_want_the_same_pixels_make_them_once(root: Path, tmp_path: Path) -> None:
    built: list[int] = []
    messages: list[str] = []

    def keep(_: int) -> FolderDataset:
        return keep_decoded(
            opened(root), tmp_path / "cache", progress=lambda done, total: built.append(done), log=messages.append
        )

    with ThreadPoolExecutor(2) as pool, exclusive(tmp_path / "cache" / f"pixels-{opened(root).pixel_key()}"):
        both = [pool.submit(keep, i) for i in range(2)]
        while len(messages) < 2:
            time.sleep(0.01)
        assert built == []
    assert all(torch.equal(one.result()[0].image, opened(root)[0].image) for one in both)
    assert built == [1, 2, 3]


def test_what_a_killed_build_left_is_removed_at_the_next_start(root: Path, tmp_path: Path) -> None:
    cache, data = tmp_path / "cache", opened(root)
    child = os.fork()
    if child == 0:
        keep_decoded(data, cache, progress=lambda done, total: os._exit(9), workers=0)
    os.waitpid(child, 0)
    left = [path.name for path in caches(cache)]
    assert sorted(name.rsplit(".", 1)[1] for name in left) == ["lock", "part"]
    place = next(cache / name[1:].split(".")[0] for name in left)
    with exclusive(place):  # a living writer's draft stays
        remove_leftovers(cache)
        assert any(path.suffix == ".part" for path in caches(cache))
    remove_leftovers(cache)
    assert caches(cache) == []


def test_an_interrupted_build_leaves_nothing(root: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep_decoded(opened(root), tmp_path / "cache", progress=stop)
    assert caches(tmp_path / "cache") == []
