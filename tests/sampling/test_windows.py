"""Canvases in windows: they cover everything, one is no change, and averaging is what several are about."""

import pytest
import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.sampling.windows import Window, windowed, windows

T = torch.tensor(0.5, dtype=torch.float64)


@pytest.mark.parametrize(("size", "window", "overlap"), [((40, 9), (8, 8), 0.25), ((17, 50), (16, 6), 0.5)])
def test_windows_cover_the_canvas_and_share_as_much_as_asked(
    size: tuple[int, int], window: tuple[int, int], overlap: float
) -> None:
    places = windows(size, window, overlap)
    covered = torch.zeros(size)
    for place in places:
        place.of(covered).add_(1)
    assert covered.min() >= 1
    assert {(place.height, place.width) for place in places} == {(min(window[0], size[0]), min(window[1], size[1]))}
    for starts, side in (({p.top for p in places}, window[0]), ({p.left for p in places}, window[1])):
        gaps = [b - a for a, b in zip(sorted(starts), sorted(starts)[1:], strict=False)]
        assert all(gap <= side * (1 - overlap) for gap in gaps)


def test_one_window_that_covers_all_is_the_function_itself() -> None:
    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        return x_t

    assert windowed(lambda _: denoise, (8, 12), (8, 12)) is denoise
    assert windowed(lambda _: denoise, (8, 12), (64, 64)) is denoise


def test_what_windows_agree_on_is_kept_and_what_not_is_averaged_by_weight() -> None:
    x = torch.randn(2, 3, 20, 24)
    same = windowed(lambda _: lambda x_t, t: 2 * x_t, (20, 24), (8, 8))
    torch.testing.assert_close(same(x, T), 2 * x)
    left = windowed(lambda place: lambda x_t, t: torch.full_like(x_t, float(place.left)), (8, 12), (8, 8), 0.5)
    row = left(torch.zeros(1, 1, 8, 12), T)[0, 0, 0]
    torch.testing.assert_close(row[:4], torch.zeros(4))
    torch.testing.assert_close(row[8:], torch.full((4,), 4.0))
    # both windows reach columns 4 to 7; their weights fall and rise linearly there
    torch.testing.assert_close(row[4:8], 4 * torch.tensor([1, 2, 3, 4]) / 5)


def test_each_window_sees_its_own_part() -> None:
    x = torch.arange(20.0).reshape(1, 1, 4, 5)
    assert torch.equal(Window(1, 2, 2, 3).of(x)[0, 0], torch.tensor([[7.0, 8, 9], [12, 13, 14]]))


def test_an_overlap_of_the_whole_window_is_refused() -> None:
    with pytest.raises(UserError, match="overlap is 1: give a share"):
        windows((8, 8), (4, 4), 1.0)
