"""Sheets of sampled images: each of several prompts has a row."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import Command, Runs
from sfumato.cli.writing import row_of_each


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_each_of_several_prompts_has_a_row_of_the_sheet(command: Command, runs: Runs, tmp_path: Path) -> None:
    prompts = ("a red circle", "a blue star")
    assert command("sample", runs.text, *prompts, "-n", 3, "--steps", 1, "--out", tmp_path).code == 0
    sheet = pixels(tmp_path / "grid.png")
    assert sheet.shape == (2 * 34 - 2, 3 * 34 - 2, 3)
    assert (sheet[34:, :32] == pixels(tmp_path / "0003.png")).all(), "the first of the second prompt"


@pytest.mark.parametrize(
    ("conditions", "columns"),
    [
        ("aabb", 2),
        ("aaabbbccc", 3),
        ("abab", None),
        ("aab", None),
        ("aaaa", None),
        ("a" * 17 + "b" * 17, None),
        ("", None),
    ],
)
def test_rows_of_a_sheet_are_for_prompts_with_as_many_images_each(conditions: str, columns: int | None) -> None:
    assert row_of_each(conditions) == columns
