"""Held-out rows: disjoint, complete, reproducible, whole groups."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.data.split import Subset, held_out_rows, split
from sfumato.errors import UserError


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 60), share=st.floats(0, 0.5), seed=st.integers(0, 3))
def test_parts_are_complete_and_disjoint(n: int, share: float, seed: int) -> None:
    training, held = held_out_rows(n, share, seed)
    assert sorted([*training, *held]) == list(range(n))
    assert len(held) == (0 if share == 0 else max(1, round(n * share)))
    again = held_out_rows(n, share, seed)
    assert np.array_equal(held, again[1])


def test_seeds_differ_and_numbers_count() -> None:
    assert len(held_out_rows(100, 7, 0)[1]) == 7
    assert held_out_rows(100, 7, 0)[1].tolist() != held_out_rows(100, 7, 1)[1].tolist()
    assert held_out_rows(100, 0, 0)[1].tolist() == []


def test_more_examples_at_the_end_move_few() -> None:
    before, after = set(held_out_rows(1000, 0.1, 0)[1].tolist()), set(held_out_rows(1100, 0.1, 0)[1].tolist())
    assert len(before & after) > 80


def test_groups_stay_together() -> None:
    groups = [i // 3 for i in range(30)]
    training, held = held_out_rows(30, 0.2, 0, groups)
    assert len(held) == 6
    assert not {groups[i] for i in training} & {groups[i] for i in held}


@pytest.mark.parametrize("n", [2, 3, 10, 24])
def test_of_two_images_on_one_at_least_is_held_out(n: int) -> None:
    assert len(held_out_rows(n, 0.02, 0)[1]) == 1
    assert len(held_out_rows(1, 0.02, 0)[1]) == 0
    assert len(held_out_rows(n, 0, 0)[1]) == 0
    groups = ["a"] * (n + 1) + ["b"] * n + ["c"] * (n + 2)  # none of one image: the smallest is held out
    assert [groups[row] for row in held_out_rows(len(groups), 0.001, 0, groups)[1]] == ["b"] * n
    assert len(held_out_rows(n, 0.02, 0, ["one text"] * n)[1]) == 0


@pytest.mark.parametrize("held_out", [-1, 1.0, 10, 11])
def test_impossible_amounts(held_out: float) -> None:
    with pytest.raises(UserError, match=f"held_out {held_out} "):
        held_out_rows(10, held_out, 0)


def test_subsets_read_their_rows() -> None:
    from test_loader import Numbers

    training, held = split(Numbers(10), 3, seed=0)
    assert (len(training), len(held)) == (7, 3)
    assert [held[i].fields["label"] for i in range(3)] == held.rows.tolist()
    assert held.variant(0, 5).fields == held[0].fields
    assert training.fingerprint() != held.fingerprint()
    assert Subset(Numbers(10), held.rows).fingerprint() == held.fingerprint()
