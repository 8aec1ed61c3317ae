"""The order of the data: coverage, disjoint ranks, and independence of everything but (seed, position)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.data.order import batch_indices, order, positions

SMALL = st.integers(1, 9)
FROZEN = [1, 0, 7, 3, 4, 2, 6, 5]


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 5), n=st.integers(1, 20), batch=SMALL, world=st.integers(1, 4))
def test_steps_and_ranks_cover_epochs_in_order(seed: int, n: int, batch: int, world: int) -> None:
    steps = 3 * n
    stream = [
        i for s in range(steps) for r in range(world) for i in batch_indices(seed, s, batch, n, rank=r, world=world)
    ]
    epochs = len(stream) // n
    expected = np.concatenate([order(seed, epoch, n) for epoch in range(epochs + 1)])[: len(stream)]
    assert stream == expected.tolist()
    for epoch in range(epochs):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


@pytest.mark.parametrize("n", [1, 3, 7, 100])
def test_two_ranks_read_what_one_reads_with_twice_the_batch(n: int) -> None:
    for step in range(10):
        one = batch_indices(3, step, 8, n)
        two = [batch_indices(3, step, 4, n, rank=rank, world=2) for rank in (0, 1)]
        assert two[0] + two[1] == one


def test_ranks_read_disjoint_places() -> None:
    places = [set(positions(step, 5, rank, 3)) for step in range(4) for rank in range(3)]
    assert set.union(*places) == set(range(60))
    assert sum(map(len, places)) == 60


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (3, 1), (1, 3), (2, 2)])
def test_another_number_of_ranks_goes_on_where_the_run_stood(before: int, after: int) -> None:
    steps, batch = 5, 3
    seen = [place for step in range(steps) for rank in range(before) for place in positions(step, batch, rank, before)]
    read = [
        place
        for step in range(4)
        for rank in range(after)
        for place in positions(step, batch, rank, after, first=len(seen))
    ]
    assert seen + read == list(range(steps * before * batch + 4 * after * batch))


def test_a_batch_larger_than_the_set_spans_epochs() -> None:
    seen = batch_indices(0, 0, 10, 3)
    assert [sorted(seen[i : i + 3]) for i in (0, 3, 6)] == [[0, 1, 2]] * 3


def test_epochs_and_seeds_differ_and_are_frozen() -> None:
    assert order(0, 0, 50).tolist() != order(0, 1, 50).tolist()
    assert order(0, 0, 50).tolist() != order(1, 0, 50).tolist()
    # frozen: another order would silently change every resumed run
    assert order(0, 0, 8).tolist() == FROZEN
    with pytest.raises(ValueError, match="read-only"):
        order(0, 0, 8)[0] = 1


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="empty"):
        batch_indices(0, 0, 4, 0)
    with pytest.raises(ValueError, match="rank 2 < world 2"):
        batch_indices(0, 0, 4, 10, rank=2, world=2)
