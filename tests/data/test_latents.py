"""The latent cache: round trip, resumption after every kind of interruption, statistics, keys that do not match."""

import errno
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data.make_images import save, truncated
from sfumato.data.dataset import UnreadableImage
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.latent_header import LatentHeader, TensorField, partial_path, tensor_fields
from sfumato.data.latent_writing import LatentWriter
from sfumato.data.latents import LatentDataset, compute_statistics
from sfumato.data.leftovers import remove_leftovers
from sfumato.data.loader import Loader, sweep
from sfumato.data.transforms import flips
from sfumato.errors import UserError
from sfumato.locks import exclusive

N, SHAPE = 10, (4, 2, 3)


def header(**changes: object) -> LatentHeader:
    given = {"autoencoder": "a" * 16, "data": "d" * 16, "count": N, "shape": SHAPE, "variational": True}
    return LatentHeader.model_validate({**given, **changes})


def moments(rows: list[int], variant: int = 0) -> Tensor:
    """Row i's moments, by its number."""
    return torch.stack([torch.randn(SHAPE, generator=torch.Generator().manual_seed(i + 100 * variant)) for i in rows])


def fields(rows: list[int]) -> dict[str, object]:
    return {"text": [f"text {i}" for i in rows], "label": torch.tensor(rows)}


def fill(writer: LatentWriter, rows: list[int], variant: int = 0) -> None:
    writer.write(rows, moments(rows, variant), fields(rows), variant)


def finished(path: Path, **changes: object) -> LatentDataset:
    with LatentWriter(path, header(**changes)) as writer:
        for variant in range(writer.header.variants):
            fill(writer, writer.todo(variant), variant)
        return writer.finish()


def test_round_trip(tmp_path: Path) -> None:
    with LatentWriter(tmp_path / "c", header(classes=("x", "y"), about={"size": 16})) as writer:
        assert writer.todo() == list(range(N))
        fill(writer, [7, 0, 3])
        assert writer.todo() == [1, 2, 4, 5, 6, 8, 9]
        fill(writer, writer.todo())
        with pytest.raises(UserError, match="is not finished: run the encoding again"):
            LatentDataset(tmp_path / "c")
        writer.finish()
    cache = LatentDataset(tmp_path / "c", autoencoder="a" * 16, data="d" * 16)
    assert len(cache) == N
    assert cache.fields == ("text", "label")
    assert cache.classes == ("x", "y")
    assert cache.captions() == [f"text {i}" for i in range(N)]
    assert cache.header.about == {"size": 16}
    for i in range(N):
        assert torch.equal(cache[i].moments, moments([i])[0].half())
        assert cache[i].fields == {"text": f"text {i}", "label": i}
        assert torch.equal(cache.variant(i, 3).moments, cache[i].moments)
    assert not partial_path(tmp_path / "c").exists()
    assert {p.name for p in (tmp_path / "c").iterdir()} == {
        *("header.json", "moments.npy", "state.npy", "fields.jsonl", "statistics.json")
    }


def test_mirrored_rows_are_chosen_as_the_image_would_be(tmp_path: Path) -> None:
    cache = finished(tmp_path / "c", mirrored=True)
    assert torch.equal(cache[4].moments, moments([4], 0)[0].half())
    for seed in range(10):
        assert torch.equal(cache.variant(4, seed).moments, moments([4], int(flips(seed)))[0].half())


def test_writing_resumes_where_it_stopped(tmp_path: Path) -> None:
    expected = finished(tmp_path / "straight")
    with LatentWriter(tmp_path / "c", header()) as writer:
        fill(writer, [0, 1, 2])
    abandoned = LatentWriter(tmp_path / "c", header())  # neither closed nor finished, as after a kill
    assert abandoned.todo() == list(range(3, N))
    fill(abandoned, [3, 4])
    with LatentWriter(tmp_path / "c", header()) as writer:
        assert writer.todo() == list(range(5, N))
        fill(writer, writer.todo())
        cache = writer.finish()
    abandoned.close()
    for name in ("moments.npy", "fields.jsonl", "statistics.json", "state.npy"):
        assert (cache.path / name).read_bytes() == (expected.path / name).read_bytes()


def test_rows_whose_fields_were_lost_are_written_again(tmp_path: Path) -> None:
    with LatentWriter(tmp_path / "c", header()) as writer:
        fill(writer, [0, 1, 2])
    lines = partial_path(tmp_path / "c") / "fields-0.jsonl"
    lines.write_bytes(lines.read_bytes()[:-5])  # the machine crashed within the last line
    with LatentWriter(tmp_path / "c", header()) as writer:
        assert writer.todo() == list(range(2, N))
        fill(writer, writer.todo())
        assert writer.finish().captions() == [f"text {i}" for i in range(N)]


def test_several_writers_share_a_cache(tmp_path: Path) -> None:
    with LatentWriter(tmp_path / "c", header()) as first:
        with LatentWriter(tmp_path / "c", header(), part=1) as second:
            fill(second, second.todo()[1::2])
        fill(first, [i for i in range(N) if i % 2 == 0])
        cache = first.finish()
    assert cache.captions() == [f"text {i}" for i in range(N)]
    with pytest.raises(ValueError, match="part 0"):
        LatentWriter(tmp_path / "other", header(), part=1)


def test_finishing_early_is_refused(tmp_path: Path) -> None:
    with LatentWriter(tmp_path / "c", header()) as writer:
        fill(writer, [0])
        with pytest.raises(ValueError, match="9 rows"):
            writer.finish()
    assert not (tmp_path / "c").exists()


def test_keys_that_differ_are_named(tmp_path: Path) -> None:
    finished(tmp_path / "c")
    with pytest.raises(UserError, match="made with autoencoder aaaaaaaaaaaa, but this is autoencoder bbbb: encode"):
        LatentDataset(tmp_path / "c", autoencoder="bbbb")
    with pytest.raises(UserError, match="made with data dddddddddddd"):
        LatentDataset(tmp_path / "c", data="eeee")
    with pytest.raises(UserError, match="exists already"):
        LatentWriter(tmp_path / "c", header())
    LatentWriter(tmp_path / "n", header()).close()
    with pytest.raises(UserError, match="started with another"):
        LatentWriter(tmp_path / "n", header(autoencoder="bbbb"))
    with pytest.raises(UserError, match="does not exist"):
        LatentDataset(tmp_path / "nowhere")
    assert header().key() != header(data="e").key()


def test_the_room_of_a_cache_is_taken_before_it_is_filled(tmp_path: Path) -> None:
    head = header(shape=(4, 64, 64), tensors={"map": TensorField(dtype="uint8", shape=(256, 256))})
    with LatentWriter(tmp_path / "c", head):
        for file in partial_path(tmp_path / "c").glob("*.npy"):
            assert file.stat().st_blocks * 512 >= file.stat().st_size, f"{file.name} is a hole"


def test_a_cache_that_is_being_begun_is_no_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(file: int, start: int, length: int) -> None:
        before = sorted(tmp_path.iterdir())
        remove_leftovers(tmp_path)
        assert sorted(tmp_path.iterdir()) == before

    monkeypatch.setattr(os, "posix_fallocate", look)
    place = tmp_path / f"latents-{header().key()}"
    with exclusive(place):
        LatentWriter(place, header()).close()
    for name in (place.name, "other-program"):
        (tmp_path / f".{name}.123.part").mkdir()
        (tmp_path / f".{name}.lock").touch()
    remove_leftovers(tmp_path)
    left = {".other-program.123.part", ".other-program.lock", f"{place.name}.partial"}
    assert {path.name for path in tmp_path.iterdir()} == left, "what is not ours, and what can be gone on with"


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"the disk is full: the latents of 10 images take 3\.1 MiB in .*--cache"):
        LatentWriter(tmp_path / "c", header(shape=(4, 200, 200)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["moments.npy", "state.npy", "header.json", "fields.jsonl"])
def test_damage_is_noticed_on_opening(tmp_path: Path, damage: str) -> None:
    finished(tmp_path / "c")
    file = tmp_path / "c" / damage
    file.write_bytes(file.read_bytes().split(b"\n", 1)[1] if damage == "fields.jsonl" else file.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"damaged|not a latent cache"):
        LatentDataset(tmp_path / "c")


def test_statistics_are_those_of_sampled_latents(tmp_path: Path) -> None:
    cache = finished(tmp_path / "c", mirrored=True)
    stored = np.load(tmp_path / "c/moments.npy").astype(np.float64)
    mean, logvar = stored[:, :, :2], stored[:, :, 2:]
    samples = mean + np.exp(logvar / 2) * np.random.default_rng(0).standard_normal((4000, *mean.shape))
    found = cache.statistics()
    assert found.mean.dtype == torch.float64
    np.testing.assert_allclose(found.mean, mean.mean((0, 1, 3, 4)), rtol=1e-12)
    variance = mean.var((0, 1, 3, 4)) + np.exp(logvar).mean((0, 1, 3, 4))
    np.testing.assert_allclose(found.std, np.sqrt(variance), rtol=1e-12)
    np.testing.assert_allclose(found.std, samples.std((0, 1, 2, 4, 5)), rtol=0.01)


def test_statistics_survive_a_large_offset_and_any_chunk() -> None:
    values = (np.random.default_rng(0).standard_normal((1, 50, 3, 2, 2)) * 0.5 + 1000).astype(np.float16)
    state = np.ones((1, 50), np.uint8)
    for chunk in (1, 7, 64):
        found = compute_statistics(values, state, variational=False, chunk=chunk)
        np.testing.assert_allclose(found.std, values.astype(np.float64).std((0, 1, 3, 4)), rtol=1e-9)
    state[0, 25:] = 2
    part = compute_statistics(values, state, variational=False)
    np.testing.assert_allclose(part.mean, values[0, :25].astype(np.float64).mean((0, 2, 3)), rtol=1e-12)
    with pytest.raises(UserError, match="no image"):
        compute_statistics(values, state * 0, variational=False)


def test_moments_that_do_not_fit(tmp_path: Path) -> None:
    with LatentWriter(tmp_path / "c", header()) as writer:
        with pytest.raises(UserError, match=r"rows \[2\] exceed float16"):
            writer.write([1, 2], torch.stack([moments([1])[0], torch.full(SHAPE, 1e6)]), fields([1, 2]))
        with pytest.raises(ValueError, match="do not fit"):
            writer.write([1], torch.zeros(1, 4, 3, 3), fields([1]))
        assert writer.todo() == list(range(N))


def test_tensor_fields_and_lists(tmp_path: Path) -> None:
    maps = torch.arange(N * 6, dtype=torch.uint8).reshape(N, 2, 3)
    boxes = [[(i, 0.5)] * (i % 3) for i in range(N)]
    tensors = tensor_fields({"map": maps[0], "boxes": boxes[0]})
    assert tensors == {"map": TensorField(dtype="uint8", shape=(2, 3))}
    with LatentWriter(tmp_path / "c", header(tensors=tensors)) as writer:
        writer.write(list(range(N)), moments(list(range(N))), {"map": maps, "boxes": boxes})
        cache = writer.finish()
    assert torch.equal(cache[5].fields["map"], maps[5])
    assert cache[5].fields["boxes"] == [[5, 0.5], [5, 0.5]]
    with Loader(cache, 4, seed=0) as loader:
        batch = next(loader)
    assert torch.equal(batch.fields["map"], maps[list(batch.index)])


def test_from_folder_to_batches_of_moments(tmp_path: Path) -> None:
    save(tmp_path / "set", ["cat/1.png", "cat/2.png", "dog/3.png"])
    truncated(tmp_path / "set/dog/4.png")
    data = FolderDataset(FolderConfig(path=tmp_path / "set", size=8, flip=True))
    head = header(count=len(data), shape=(6, 4, 4), data=data.fingerprint(), mirrored=True, classes=data.classes)
    with LatentWriter(tmp_path / "c", head) as writer:
        for variant in (0, 1):
            for batch in sweep(data, 2, writer.todo(variant), unreadable=writer.skip):
                images = batch.images.flip(-1) if variant else batch.images
                encoded = torch.nn.functional.avg_pool2d(torch.cat([images, images - 5], 1), 2)
                writer.write(batch.index, encoded, batch.fields, variant)
        cache = writer.finish()
    assert cache.unreadable == [3]
    with pytest.raises(UnreadableImage):
        cache[3]
    with Loader(data, 4, seed=0) as images, Loader(cache, 4, seed=0) as latents:
        for _ in range(6):
            seen, stored = next(images), next(latents)
            assert stored.index == seen.index
            assert torch.equal(stored.fields["label"], seen.fields["label"])
            expected = torch.nn.functional.avg_pool2d(torch.cat([seen.images, seen.images - 5], 1), 2)
            assert torch.equal(stored.moments, expected.half().float())
    with pytest.raises(ValueError, match="not images"):
        _ = stored.images
    rows = [json.loads(line) for line in (tmp_path / "c/fields.jsonl").read_text().splitlines()]
    assert rows == [{"label": 0}, {"label": 0}, {"label": 1}, {}]


def test_processes_that_are_killed_lose_only_the_rows_that_they_had_not_written(tmp_path: Path) -> None:
    """Two processes write one cache in files of three rows each, and are killed by SIGKILL in the middle."""
    head = header(rows_per_file=3)
    LatentWriter(tmp_path / "c", head).close()
    for part, rows in enumerate([[0, 1], [5, 6, 7]]):
        child = os.fork()
        if child == 0:
            writer = LatentWriter(tmp_path / "c", head, part=part)
            fill(writer, rows)
            os.kill(os.getpid(), signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with LatentWriter(tmp_path / "c", head) as writer:
        assert writer.todo() == [2, 3, 4, 8, 9]
        fill(writer, writer.todo())
        cache = writer.finish()
    assert len(list((tmp_path / "c").glob("moments-*.npy"))) == 4
    for row in range(N):
        assert torch.equal(cache[row].moments, moments([row])[0].half())
        assert cache[row].fields["text"] == f"text {row}"
