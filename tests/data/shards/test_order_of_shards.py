"""Shards are shuffled by shard and buffer: every image once an epoch, by position alone, few shards at a time."""

from pathlib import Path

import numpy as np
import pytest

from data.shards.make_shards import opened, pixels, shards, tar
from sfumato.data.dataset import Blocks
from sfumato.data.kinds import kind_of
from sfumato.data.loader import Loader
from sfumato.data.order import BlockOrder
from sfumato.data.split import split

STARTS = (0, 5, 6, 16, 20, 33, 40)


def test_every_row_once_an_epoch_and_two_blocks_at_a_time() -> None:
    order, n = BlockOrder(3, Blocks(STARTS, 2)), STARTS[-1]
    epochs = [[order(epoch * n + place) for place in range(n)] for epoch in range(3)]
    assert all(sorted(rows) == list(range(n)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 3
    for rows in epochs:
        owners = [int(np.searchsorted(STARTS, row, side="right")) for row in rows]
        firsts = {owner: owners.index(owner) for owner in owners}
        lasts = {owner: n - owners[::-1].index(owner) for owner in owners}
        open_at_once = [sum(firsts[o] <= place < lasts[o] for o in firsts) for place in range(n)]
        assert max(open_at_once) == 2
        assert rows != sorted(rows)
    again = BlockOrder(3, Blocks(STARTS, 2))
    assert [again(place) for place in (57, 3, 119)] == [order(place) for place in (57, 3, 119)], (
        "in any order of asking"
    )


def test_a_split_keeps_the_blocks(tmp_path: Path) -> None:
    training, aside = split(opened(shards(tmp_path, [4, 1, 5])), 2, seed=0)
    blocks = training.blocks()
    assert blocks is not None
    assert blocks.starts[0] == 0
    assert blocks.starts[-1] == len(training) == 8
    kept = [int(np.searchsorted((0, 4, 5, 10), row, side="right")) for row in training.rows]
    for start, end in zip(blocks.starts, blocks.starts[1:], strict=False):
        assert len(set(kept[start:end])) == 1
    assert len(aside) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_in_the_middle_of_a_shard_and_shares_uneven_shards(workers: int, tmp_path: Path) -> None:
    found = opened(shards(tmp_path, [3, 9, 1, 6]), together=2)
    with Loader(found, 2, seed=5, workers=workers) as data:
        straight = [next(data) for _ in range(12)]
    with Loader(found, 2, seed=5, start=5, workers=workers) as data:
        for expected in straight[5:]:
            batch = next(data)
            assert batch.index == expected.index
            assert batch.images.equal(expected.images)
            assert batch.fields == expected.fields
    ranks = []
    for rank in range(2):
        with Loader(found, 1, seed=5, rank=rank, world=2, workers=workers) as data:
            ranks.append([next(data).index[0] for _ in range(12)])
    assert [rows for pair in zip(*ranks, strict=True) for rows in pair] == [i for one in straight for i in one.index]


def test_the_kind_of_a_place(tmp_path: Path) -> None:
    tar(tmp_path / "shards" / "0.tar", [])
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.tar").write_bytes(b"")
    (tmp_path / "images" / "0.png").write_bytes(b"")
    assert kind_of(str(tmp_path / "shards")) == "shards"
    assert kind_of(str(tmp_path / "images")) == "folder", "an archive beside images"
    assert kind_of("https://host/{0..9}.tar") == kind_of("a/{0..9}.tar") == kind_of("s3://bucket/set/") == "shards"
    assert kind_of("nothing/here") == "folder"


def test_large_members_are_read_in_parts(tmp_path: Path) -> None:
    from data.make_images import noise

    path = tmp_path / "big.png"
    noise(1, 700, 700).save(path, compress_level=0)
    found = opened(tar(tmp_path / "0.tar", [("0.png", path.read_bytes())]), size=64)
    assert path.stat().st_size > 2**20
    path.rename(tmp_path / "renamed.png")
    from data.shards.make_shards import folder

    (tmp_path / "alone").mkdir()
    (tmp_path / "renamed.png").rename(tmp_path / "alone" / "big.png")
    assert pixels(found[0]) == pixels(folder(tmp_path / "alone", size=64)[0])
