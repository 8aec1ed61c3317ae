"""The sentences on what was learnt: none claims more than its numbers show."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fit.synthetic import PHOTOS, machine
from sfumato.fit.evaluate import Evaluation
from sfumato.fit.learnt import sentences
from sfumato.fit.plan import make_plan
from sfumato.report.fit_result import KernelScore, Memorised

FLAT = [{"loss_smoothed": 0.3}] * 40
FALLING = [{"loss_smoothed": 1 - i / 50} for i in range(40)]


def said(log: Sequence[dict[str, Any]] = FLAT, psnr: float = 25.0, **found: Any) -> str:
    """All sentences on a fit of forty photographs."""
    parts = {"agreement": None, "variety": None, "kernel": None, "memorised": None, **found}
    evaluation = cast(Evaluation, SimpleNamespace(first_stage=SimpleNamespace(psnr=psnr), **parts))
    return " ".join(sentences(make_plan(PHOTOS, machine(), 300.0), evaluation, log))


@pytest.mark.parametrize(
    ("share", "sentence"),
    [
        (0.0, "No sample is a copy of a training image (f_mem 0 %)."),
        (0.05, "Hardly any sample is a copy of a training image (f_mem 5.0 %)."),
        (0.5, "50.0 % of the samples are copies of training images (f_mem). A model memorises so few images"),
    ],
)
def test_copies_are_counted_in_words(share: float, sentence: str) -> None:
    assert sentence in said(memorised=Memorised(share, 64, 72, 32, True))


def test_a_distance_from_few_images_is_called_rough() -> None:
    few, many = (said(kernel=KernelScore(0.3, 0.01, 64, real, "features")) for real in (12, 200))
    assert "12 real images is 0.300" in few
    assert "With 12 real images it is only a rough estimate." in few
    assert "rough" not in many


def test_reconstructions_and_losses_are_judged_by_their_numbers() -> None:
    assert "at 25.0 dB: shapes and colours are kept" in said()
    assert "much is lost, less of training images." in said(psnr=18.0)
    assert "hardly fell at the end" in said()
    assert "still falling at the end: longer training makes samples sharper, and more of them copies." in said(FALLING)
    assert "too few training images to measure memorisation" in said()
