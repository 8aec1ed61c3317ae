"""The rows of `sfumato sample`: prompts, labels and seeds, an entry for each image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.counts import how_many
from sfumato.errors import UserError
from sfumato.pipeline.options import Range, check_number
from sfumato.pipeline.request import MOST_IMAGES, SEED

IMAGES = 4
"""Of one prompt, where no number is given."""


@dataclass(frozen=True)
class SampleSpec:
    """The images to sample, an entry for each."""

    prompts: list[str] | None
    labels: list[str] | None
    seeds: list[int]

    def rows(self, rows: slice) -> "SampleSpec":
        """Some of them."""
        prompts, labels = (None if values is None else values[rows] for values in (self.prompts, self.labels))
        return SampleSpec(prompts, labels, self.seeds[rows])

    def facts(self) -> dict[str, Any]:
        """The record of the first image."""
        facts = {
            "prompt": self.prompts and self.prompts[0],
            "label": self.labels and self.labels[0],
            "seed": self.seeds[0],
        }
        return {name: value for name, value in facts.items() if value is not None}


def sample_spec(
    prompts: Sequence[str] | None,
    labels: Sequence[str] | None,
    count: int | None,
    seed: int | None,
    seeds: Sequence[int] | None = None,
    same_seed: bool = False,
) -> SampleSpec:
    """`count` images of each prompt or label, with seeds from `seed` or 0 on, or `seeds`, or all with the one.

    Raises UserError where prompts and labels are both several, and not as many, for seeds that are not as many as the
    images, and for more images than a request may have.
    """
    rows = max(len(prompts or ()), len(labels or ()), 1)
    for name, values in (("prompts", prompts), ("labels", labels)):
        if values is not None and len(values) not in (1, rows):
            raise UserError(f"{len(values)} {name} do not go with {rows} of the other: give one, or as many")
    check_number("--count", count, Range(1, MOST_IMAGES // rows, whole=True))
    if seeds is not None:
        each = _images_of_each(seeds, rows, count, seed, same_seed)
    else:
        each = count if count is not None else IMAGES if rows == 1 else 1
    seed = seed or 0
    check_number("the last image's seed", seed + rows * each - 1, SEED)
    usual = [seed] * (rows * each) if same_seed else [seed + i for i in range(rows * each)]
    return SampleSpec(_repeated(prompts, rows, each), _repeated(labels, rows, each), list(seeds or usual))


def _images_of_each(seeds: Sequence[int], rows: int, count: int | None, seed: int | None, same_seed: bool) -> int:
    """Images of each row where every image's seed is given."""
    if seed is not None or same_seed:
        raise UserError(f"--seeds and {'--same-seed' if same_seed else '--seed'} both choose seeds: give one of them")
    each = len(seeds) // rows if count is None else count
    if rows * each != len(seeds):
        raise UserError(
            f"{how_many(len(seeds), 'seed')} for {how_many(rows, 'prompt or label', 'prompts or labels')}: give one "
            "for each image"
        )
    return each


def _repeated(values: Sequence[str] | None, rows: int, each: int) -> list[str] | None:
    return None if values is None else [values[row % len(values)] for row in range(rows) for _ in range(each)]


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that are not empty. Raises UserError if there are none."""
    from sfumato.data.textfile import LARGEST_CAPTION, lines_of, read_text

    name = f"--prompts {str(path)!r}"
    lines = [line.strip() for line in lines_of(read_text(path, None, LARGEST_CAPTION, "save it as UTF-8", name))]
    if not any(lines):
        raise UserError(f"{name} holds no prompt: write one on each line")
    return [line for line in lines if line]
