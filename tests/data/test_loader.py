"""The loader: the same batches whatever the threads, resumption, collation, substitutes, errors that name the file."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from data.make_images import metadata, save, truncated
from sfumato.data.dataset import Example, Source, UnreadableImage
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.loader import Batch, Loader, sweep, to_unit
from sfumato.data.order import batch_indices, index_at
from sfumato.data.prefetch import Prefetch
from sfumato.errors import UserError
from sfumato.training.batches import changed_batch, open_batches
from sfumato.training.state import TrainState


class Numbers:
    """Example i is a constant image of value i; some cannot be read, one is slow, one breaks."""

    fields: tuple[str, ...] = ("label",)
    classes: tuple[str, ...] | None = None

    def __init__(self, n: int, unreadable: tuple[int, ...] = (), slow: float = 0, broken: int | None = None) -> None:
        self.n, self.bad, self.slow, self.broken = n, unreadable, slow, broken

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Example:
        time.sleep(self.slow)
        if index in self.bad:
            raise UnreadableImage(f"{index}.png", "broken")
        if index == self.broken:
            error = KeyError("nonsense")
            error.add_note(f"while reading {index}.png")
            raise error
        return Example(torch.full((3, 2, 2), index, dtype=torch.uint8), {"label": index})

    def fingerprint(self) -> str:
        return "numbers"

    def captions(self) -> list[str] | None:
        return None


def take(source: Source[Example], steps: int, **options: Any) -> list[Batch]:
    with Loader(source, **{"batch": 4, "seed": 1, **options}) as loader:
        return [next(loader) for _ in range(steps)]


def same(a: Batch, b: Batch) -> bool:
    return (a.step, a.index) == (b.step, b.index) and torch.equal(a.values, b.values)


@pytest.fixture
def folder(tmp_path: Path) -> FolderDataset:
    names = [f"{i}.png" for i in range(10)]
    save(tmp_path, names, 8, 12)
    metadata(tmp_path, [{"file_name": n, "text": n, "label": i % 3, "x": i / 2} for i, n in enumerate(names)])
    return FolderDataset(FolderConfig(path=tmp_path, size=8, crop="random", flip=True, columns=("x",)))


def test_batches_follow_the_order_and_collate(folder: FolderDataset) -> None:
    batch = take(folder, 3)[2]
    assert list(batch.index) == batch_indices(1, 2, 4, 10)
    assert batch.images.shape == (4, 3, 8, 8)
    assert batch.images.dtype == torch.float32
    assert batch.fields["text"] == [f"{i}.png" for i in batch.index]
    assert torch.equal(batch.fields["label"], torch.tensor([i % 3 for i in batch.index]))
    assert torch.equal(batch.fields["x"], torch.tensor([i / 2 for i in batch.index]))
    with pytest.raises(ValueError, match="images, not the moments"):
        _ = batch.moments


def test_range_of_pixels() -> None:
    assert to_unit(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(((to_unit(values) + 1) * 127.5).round().to(torch.uint8), values)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(folder: FolderDataset, workers: int) -> None:
    expected = take(folder, 8, workers=0)
    assert all(same(a, b) for a, b in zip(expected, take(folder, 8, workers=workers, ahead=7), strict=True))


def test_a_later_start_continues_the_run(folder: FolderDataset) -> None:
    whole = take(folder, 9)
    assert all(same(a, b) for a, b in zip(whole[4:], take(folder, 5, start=4), strict=True))


def test_ranks_together_read_the_global_batch_with_its_variants(folder: FolderDataset) -> None:
    one = take(folder, 4, batch=6)
    two = [take(folder, 4, batch=3, rank=rank, world=2) for rank in (0, 1)]
    for step in range(4):
        assert torch.equal(one[step].images, torch.cat([two[0][step].images, two[1][step].images]))


def test_variants_differ_between_epochs_and_can_be_switched_off(folder: FolderDataset) -> None:
    seen: dict[int, list[Tensor]] = {}
    for batch in take(folder, 20, batch=5):
        for index, image in zip(batch.index, batch.images, strict=True):
            seen.setdefault(index, []).append(image)
    assert all(len(images) == 10 for images in seen.values())
    assert all(any(not torch.equal(images[0], other) for other in images) for images in seen.values())
    for batch in take(folder, 2, variants=False):
        assert torch.equal(batch.images, torch.stack([to_unit(folder[i].image) for i in batch.index]))


@pytest.mark.parametrize("workers", [0, 3])
def test_unreadable_examples_are_replaced_the_same_way_everywhere(workers: int) -> None:
    source = Numbers(12, unreadable=(2, 7))
    with Loader(source, 4, seed=0, workers=workers) as loader:
        batches = [next(loader) for _ in range(6)]
        assert loader.unreadable == [("2.png", "broken"), ("7.png", "broken")]
    assert all(same(a, b) for a, b in zip(batches, take(source, 6, seed=0, workers=0), strict=True))
    for step, batch in enumerate(batches):
        wanted = batch_indices(0, step, 4, 12)
        assert all(i == w or w in (2, 7) for i, w in zip(batch.index, wanted, strict=True))
        assert not {2, 7} & set(batch.index)
        assert batch.fields["label"].tolist() == list(batch.index)


def test_nothing_readable_ends_with_a_sentence() -> None:
    with Loader(Numbers(2, unreadable=(0, 1)), 1, seed=0) as loader, pytest.raises(UserError, match="cannot be read"):
        next(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_other_errors_name_example_step_and_file(workers: int) -> None:
    with Loader(Numbers(8, broken=5), 1, seed=0, workers=workers) as loader:
        at = next(step for step in range(8) if batch_indices(0, step, 1, 8) == [5])
        for _ in range(at):
            next(loader)  # the error waits for its turn
        with pytest.raises(RuntimeError, match=rf"example 5 of step {at} .*KeyError: 'nonsense', while reading 5.png"):
            next(loader)


def test_stall_time_and_reading_ahead() -> None:
    with Loader(Numbers(8, slow=0.02), 2, seed=0, workers=2, ahead=2) as loader:
        next(loader)
        first = loader.data_wait_seconds
        time.sleep(0.2)
        next(loader)
        assert first > 0.03
        assert loader.data_wait_seconds - first < 0.02


def test_closing_stops_the_threads() -> None:
    before = threading.active_count()
    loader = Loader(Numbers(8, slow=0.01), 2, seed=0, workers=3)
    next(loader)
    loader.close()
    loader.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


def test_empty_set_and_wrong_sizes() -> None:
    with pytest.raises(UserError, match="dataset is empty"):
        Loader(Numbers(0), 2, seed=0)
    with pytest.raises(UserError, match="batch 0"):
        Loader(Numbers(3), 0, seed=0)


def test_sweep_reads_every_row_once_in_order(tmp_path: Path) -> None:
    bad: list[int] = []
    seen: list[tuple[int, int]] = []
    batches = list(
        sweep(
            Numbers(10, unreadable=(0, 4, 5)),
            2,
            rows=[*range(1, 10), 0],
            unreadable=lambda row, _: bad.append(row),
            progress=lambda done, total: seen.append((done, total)),
        )
    )
    assert [batch.index for batch in batches] == [(1, 2), (3,), (6,), (7, 8), (9,)]
    assert bad == [4, 5, 0]
    assert seen[-1] == (10, 10)
    assert torch.equal(batches[3].fields["label"], torch.tensor([7, 8]))


def test_sweep_abandoned_half_way_stops_its_threads() -> None:
    before = threading.active_count()
    iterator: Iterator[Batch] = sweep(Numbers(50), 1)
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_prefetch_ends_and_bounds_its_queue() -> None:
    begun: list[int] = []
    ahead = Prefetch(lambda n: begun.append(n) or n, 0, 2, ahead=3, end=5)
    time.sleep(0.05)
    assert sorted(begun) == [0, 1, 2]
    assert [ahead.next() for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(StopIteration):
        ahead.next()
    ahead.close()


def test_damaged_file_in_a_folder_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, ["a.png", "b.png"])
    truncated(tmp_path / "c.png")
    folder = FolderDataset(FolderConfig(path=tmp_path, size=8))
    assert {i for batch in take(folder, 6, batch=3) for i in batch.index} == {0, 1}
    assert [name for name, _ in folder.unreadable] == ["c.png"]


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (2, 2)])
def test_a_resumed_run_with_other_ranks_reads_no_sample_again(before: int, after: int) -> None:
    """Loaders stand for the processes: 10 steps of `before`, then as `open_batches` goes on with `after`."""
    batch, steps, n = 4, 10, 250
    train = SimpleNamespace(batch=batch, accumulate=1, seed=0, workers=0)

    def read(world: int, state: TrainState, count: int) -> list[int]:
        processes = [SimpleNamespace(rank=rank, world=world, device=torch.device("cpu")) for rank in range(world)]
        loaders = [open_batches(Numbers(n), train, state, process) for process in processes]  # type: ignore[arg-type]
        return [i for _ in range(count) for loader in loaders for i in next(loader).index]

    first = read(before, TrainState({}, {}), steps)
    state = TrainState({}, {}, step=steps, images=len(first))
    more = read(after, state, steps)
    assert [*first, *more] == [index_at(0, place, n) for place in range(len(first) + len(more))]
    message = changed_batch(state, batch * after)
    assert (message is None) == (before == after)
    assert message is None or f"each step uses {batch * after} images instead of {batch * before};" in message
