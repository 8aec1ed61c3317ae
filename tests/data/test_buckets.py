"""Buckets: their sizes, which images they hold, the order of their steps, and what moves with the images."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from data.make_images import noise, save
from sfumato.data.bucket_order import BucketOrder
from sfumato.data.buckets import BucketsConfig, bucket_sizes, cropped_away, nearest, small_buckets
from sfumato.data.conditions.boxes import FolderBoxes
from sfumato.data.conditions.config import BoxesConfig, MapsConfig
from sfumato.data.conditions.maps import FolderMaps
from sfumato.data.dataset import Blocks, Buckets
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.latent_header import LatentGroup, LatentHeader, TensorField
from sfumato.data.latent_writing import LatentWriter
from sfumato.data.latents import LatentDataset, compute_statistics
from sfumato.data.loader import Loader, sweep
from sfumato.data.pixels import keep_decoded

SIZES = ((12, 20), (16, 16), (20, 12))


def folder(root: Path, shapes: list[tuple[int, int]], **settings: object) -> FolderConfig:
    """Random images of these (H, W); four pixels step."""
    for number, (height, width) in enumerate(shapes):
        save(root, [f"{number:02d}.png"], height, width)
    return FolderConfig.model_validate({"path": root, "size": 16, "buckets": {"step": 4}, **settings})


@given(step=st.integers(1, 40), squares=st.integers(1, 12), ratio=st.floats(1.1, 8))
def test_sizes_have_one_area_and_fit_the_step(step: int, squares: int, ratio: float) -> None:
    side = step * squares
    sizes = bucket_sizes((side, side), BucketsConfig(step=step, ratio=ratio))
    assert (side, side) in sizes
    assert all((w, h) in sizes for h, w in sizes)
    assert list(sizes) == sorted(sizes, key=lambda one: one[0] / one[1])
    for h, w in sizes:
        assert h % step == w % step == 0
        assert max(h, w) <= ratio * min(h, w)
        assert abs(h * w - side**2) <= step * min(h, w) / 2


def test_an_image_goes_to_the_bucket_that_crops_least() -> None:
    assert bucket_sizes((16, 16), BucketsConfig(step=4)) == SIZES
    images = [(100, 100), (100, 180), (9, 5), (1000, 10), (100, 126)]
    found = nearest(SIZES, images)
    assert found.rows.tolist() == [1, 0, 2, 2, 1]
    for image, own in zip(images, found.rows, strict=True):
        assert cropped_away(image, SIZES[own]) == min(cropped_away(image, size) for size in SIZES)
    assert cropped_away((100, 200), (16, 16)) == 0.5
    assert cropped_away((30, 50), (12, 20)) == 0
    with pytest.raises(ValidationError, match=r"size 18x18 is not a multiple of buckets\.step 4: change either"):
        FolderConfig(path=Path("x"), size=18, buckets=BucketsConfig(step=4))


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=4), step=st.integers(1, 7), seed=st.integers(0, 3))
def test_steps_are_of_one_bucket_and_all_rows_are_read_alike(counts: list[int], step: int, seed: int) -> None:
    if not any(counts):
        return
    rows = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    buckets = Buckets(tuple((8, 8 + number) for number in range(len(counts))), rows)
    order, again = (BucketOrder(seed, buckets, step) for _ in range(2))
    epochs = step  # after as many, every bucket's stream is at the end of a step
    stream = [order(position) for position in range(epochs * len(rows))]
    assert Counter(stream) == dict.fromkeys(range(len(rows)), epochs)
    for start in range(0, len(stream), step):
        assert len({rows[row] for row in stream[start : start + step]}) == 1
    assert [again(position) for position in reversed(range(len(stream)))] == stream[::-1], "nothing is stored"


def test_buckets_of_shards_are_read_shard_after_shard() -> None:
    rows = np.array([0, 1, 1, 0, 0, 1, 0, 0, 1, 0, 1, 1])
    order = BucketOrder(0, Buckets(((8, 8), (8, 16)), rows), 2, Blocks((0, 4, 8, 12), 1))
    stream = [order(position) for position in range(24)]
    assert Counter(stream) == dict.fromkeys(range(12), 2)
    for bucket in (0, 1):
        own = [row // 4 for row in stream if rows[row] == bucket]
        assert len(list(dict.fromkeys(own))) == 3
        assert list(dict.fromkeys(own[:6])) == list(dict.fromkeys([row // 4 for row in stream if rows[row] == 0][:6]))
        assert all(own[i] == own[i - 1] or own[i] not in own[:i] for i in range(1, 6)), "one block after the other"


def test_ranks_read_what_one_process_does_and_replace_what_is_damaged(tmp_path: Path) -> None:
    shapes = [(20, 12)] * 5 + [(16, 16)] * 4 + [(12, 20)] * 3
    config = folder(tmp_path, shapes)
    dataset = FolderDataset(config)
    (tmp_path / "06.png").write_bytes((tmp_path / "06.png").read_bytes()[:60])  # after the scan
    with Loader(dataset, 4, 7, workers=0) as one, Loader(dataset, 2, 7, workers=0, same_size=4) as halves:
        for _ in range(9):
            whole, parts = next(one), [next(halves), next(halves)]
            assert torch.equal(whole.images, torch.cat([part.images for part in parts])), "accumulation is of one size"
            assert {shapes[row] for row in whole.index} == {tuple(whole.images.shape[2:])}
        assert [path for path, _ in one.unreadable] == ["06.png"]
        fresh = next(one).images
    with Loader(dataset, 4, 7, 9, workers=0) as resumed:
        assert torch.equal(resumed.peek().images, fresh)
        assert torch.equal(next(resumed).images, fresh)
    read = [row for batch in sweep(dataset, 3, workers=0) for row in batch.index]
    assert sorted(read) == [row for row in range(12) if row != 6]
    buckets = dataset.buckets()
    assert buckets is not None
    assert small_buckets(buckets, 3) is None
    assert small_buckets(buckets, 4) == (
        "1 bucket holds fewer images than the 4 of a step, whose batches repeat them: 12x20 3; take a smaller batch, "
        "or a larger data.buckets.step for fewer buckets"
    )


def test_maps_and_boxes_move_with_their_image(tmp_path: Path) -> None:
    """Maps that are their images stay equal to them; a box stays around the only bright rectangle."""
    boxes = []
    (tmp_path / "maps").mkdir()
    for number, (height, width) in enumerate([(30, 20), (20, 30), (20, 20), (40, 12)]):
        pixels = np.zeros((height, width), np.uint8)
        pixels[height // 2 : height // 2 + 4, width // 2 : width // 2 + 4] = 1
        Image.fromarray(pixels * 255).convert("RGB").save(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(tmp_path / "maps" / f"{number}.png")
        box = [width // 2, height // 2, 4, 4]
        boxes.append(f'{{"file_name": "{number}.png", "boxes": [{{"label": "b", "bbox": {box}}}]}}\n')
    (tmp_path / "metadata.jsonl").write_text("".join(boxes))
    (tmp_path / "classes.txt").write_text("dark\nbright\n")
    config = FolderConfig.model_validate(
        {"path": tmp_path, "size": 16, "buckets": {"step": 4}, "crop": "random", "flip": True, "leave_out": ["maps"]}
    )
    dataset = FolderDataset(config)
    maps, found = FolderMaps(dataset, MapsConfig()), FolderBoxes(dataset, BoxesConfig(classes="none"))
    assert {tuple(dataset[row].image.shape[1:]) for row in range(4)} == set(SIZES)
    for row in range(4):
        for seed in (None, 1, 2, 3, 4):
            image = dataset[row].image if seed is None else dataset.variant(row, seed).image
            ids = maps(row, seed)["map"]
            assert ids.shape == image.shape[1:]
            bright = image[0] > 127
            assert (bright != (ids == 1)).float().mean() < 0.05
            for x, y, across, down in found(row, seed)["boxes"]:
                rows, columns = np.nonzero(bright.numpy())
                h, w = bright.shape
                assert abs(y * h - rows.min()) <= 1
                assert abs(x * w - columns.min()) <= 1
                assert abs((y + down) * h - 1 - rows.max()) <= 1
                assert abs((x + across) * w - 1 - columns.max()) <= 1


def test_turned_photos_and_kept_pixels(tmp_path: Path) -> None:
    config = folder(tmp_path / "images", [(12, 20), (16, 16)], crop="random")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(5, 24, 40).save(tmp_path / "images" / "turned.jpg", exif=exif)
    dataset = FolderDataset(config)
    assert dataset.scan.headers[2].upright == (40, 24)
    assert [tuple(dataset[row].image.shape[1:]) for row in range(3)] == [(12, 20), (16, 16), (20, 12)]
    kept = keep_decoded(dataset, tmp_path / "cache", workers=0)
    assert all(torch.equal(kept.variant(row, 3).image, dataset.variant(row, 3).image) for row in range(3))
    plain = FolderDataset(config.model_copy(update={"buckets": None}))
    other = FolderDataset(folder(tmp_path / "images", []))
    assert len({dataset.pixel_key(), plain.pixel_key(), other.pixel_key()}) == 3


@pytest.mark.parametrize("rows_per_file", [None, 2])
def test_latents_of_several_shapes(tmp_path: Path, rows_per_file: int | None) -> None:
    rows = np.array([0, 2, 2, 0, 2, 0, 2])  # nothing is in the middle one
    groups = tuple(
        LatentGroup(
            size=size,
            shape=(4, size[0] // 4, size[1] // 4),
            count=int((rows == number).sum()),
            tensors={"map": TensorField(dtype="uint8", shape=size)},
        )
        for number, size in enumerate(SIZES)
    )
    header = LatentHeader(
        autoencoder="a",
        data="d",
        count=7,
        shape=groups[0].shape,
        variational=False,
        mirrored=True,
        tensors=groups[0].tensors,
        groups=groups,
        rows_per_file=rows_per_file,
    )
    assert (
        header.key()
        == header.model_copy(update={"rows_per_file": 5}).key()
        != LatentHeader(**header.model_dump(exclude={"groups"})).key()
    )

    def moments(row: int, variant: int) -> torch.Tensor:
        return torch.randn(groups[rows[row]].shape, generator=torch.Generator().manual_seed(row + 50 * variant))

    def write(writer: LatentWriter, chosen: list[int], variant: int) -> None:
        size = SIZES[rows[chosen[0]]]
        maps = torch.stack([torch.full(size, row, dtype=torch.uint8) for row in chosen])
        values = torch.stack([moments(row, variant) for row in chosen])
        writer.write(chosen, values, {"text": [str(row) for row in chosen], "map": maps}, variant)

    with LatentWriter(tmp_path / "c", header, groups=rows) as writer:
        write(writer, [1, 2, 4], 0)
        with pytest.raises(ValueError, match="do not fit"):
            writer.write([0], moments(1, 0)[None], {"text": ["0"], "map": torch.zeros(1, 12, 20)})
    other = header.model_copy(update={"rows_per_file": None if rows_per_file else 3})
    with LatentWriter(tmp_path / "c", other, groups=rows) as writer:  # continued, in the files that are there
        assert writer.todo() == [0, 3, 5, 6]
        for chosen in ([0, 3, 5], [6]):
            write(writer, chosen, 0)
        for chosen in ([0, 3, 5], [1, 2, 4, 6]):
            write(writer, chosen, 1)
        writer.finish()
    cache = LatentDataset(tmp_path / "c")
    assert ("moments-20x12-00001.npy" in {path.name for path in (tmp_path / "c").iterdir()}) == bool(rows_per_file)
    for row in range(7):
        for variant in (0, 1):
            assert torch.equal(cache.row(row, bool(variant)).moments, moments(row, variant).half())
        assert cache[row].fields["text"] == str(row)
        assert cache[row].fields["map"].shape == SIZES[rows[row]]
        assert (cache[row].fields["map"] == row).all()
    buckets = cache.buckets()
    assert buckets is not None
    assert buckets.used == (SIZES[0], SIZES[2])
    flat = [moments(row, variant).half().reshape(4, -1) for row in range(7) for variant in (0, 1)]
    expected = compute_statistics(
        torch.cat(flat, 1)[None, None, :, :, None].numpy(), np.ones((1, 1), np.uint8), variational=False
    )
    torch.testing.assert_close(cache.statistics().mean, expected.mean)
    torch.testing.assert_close(cache.statistics().std, expected.std)
