"""`sfumato sample` in several processes, or again after an interruption: image i is 000i.png, whoever samples it."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sfumato.cli.numbering import next_number
from sfumato.cli.writing import images_in, texts_of_image
from sfumato.errors import UserError

if TYPE_CHECKING:
    from sfumato.model import LatentDiffusion
    from sfumato.pipeline.plan import Plan
    from sfumato.pipeline.record import SampleRecord
    from sfumato.pipeline.request import SampleRequest

PLAN = "sampling.json"
"""The file that notes which request the numbers of a folder belong to."""


@dataclass(frozen=True)
class Share:
    """This process among all that sample a request."""

    rank: int = 0
    world: int = 1

    def firsts(self, folder: Path, count: int, batch: int) -> list[int]:
        """The first rows of the batches of this process that are not all written yet.

        Whole batches are shared out: an image is computed in the same batch however many processes there are.
        """
        own = list(range(0, count, batch))[self.rank :: self.world]
        return [
            first
            for first in own
            if not all(path_of(folder, row).exists() for row in range(first, min(count, first + batch)))
        ]


def own_share() -> Share:
    """The share of this process, as its launcher announced it. Raises UserError as `launched` does."""
    from sfumato.training.launch import launched

    launch = launched()
    return Share(launch.rank, launch.world)


def path_of(folder: Path, row: int) -> Path:
    """The image of a row."""
    return folder / f"{row:04d}.png"


def sample_share(
    model: "LatentDiffusion",
    request: "SampleRequest",
    planned: "Plan",
    folder: Path,
    facts: dict[str, Any],
    share: Share,
    name: str | None = None,
) -> None:
    """Samples the batches of this process that are not there yet; arguments as of `sample_diffusion`.

    Raises UserError if the folder holds images of another request.
    """
    from dataclasses import replace

    from sfumato.cli.progress import counting
    from sfumato.images import save_png, to_uint8
    from sfumato.pipeline import pipeline
    from sfumato.pipeline.recording import record_of
    from sfumato.provenance import computed_by, not_in_text, sample_body

    lost = not_in_text(request)
    record = record_of(model, request, planned)
    _claim(folder, record, request.batch)
    firsts = share.firsts(folder, planned.count, request.batch)
    t_start, made = time.monotonic(), 0
    with _bar(counting("sampling", planned.steps * len(firsts), "steps"), share) as advance:
        watched = replace(request, callback=lambda step: advance(1))
        for batch in pipeline.batches(model, watched, planned, firsts):
            computed = computed_by(model, len(batch.rows))
            for row, pixels in zip(batch.rows, to_uint8(batch.images).cpu(), strict=True):
                body = None if lost else sample_body(record, row, request)
                about = {"request": body, "computed": computed, "name": name}
                save_png(path_of(folder, row), pixels, texts_of_image(pixels, {**record.of(row), **facts}, about))
                made += 1
    there = planned.count - made if share.world == 1 else None
    kept = f", {there} were there" if there else ""
    last = path_of(folder, planned.count - 1).name
    who = "" if share.world == 1 else f"process {share.rank} of {share.world}: "
    typer.echo(
        f"{who}{images_in(made, time.monotonic() - t_start) if made else 'nothing left to sample'}{kept}: "
        f"{folder}/0000.png to {last}"
    )


@contextmanager
def _bar(bar: Any, share: Share) -> Iterator[Any]:
    """The bar, in the first process only."""
    if share.rank:
        yield lambda by, of=None: None
        return
    with bar as advance:
        yield advance


def _claim(folder: Path, record: "SampleRecord", batch: int) -> None:
    """Notes the request in the folder. Raises UserError if it holds images of another one, or without a note."""
    from sfumato.checkpoint import write_text

    facts = json.dumps(
        [record.shared(), record.prompts, record.labels, record.seeds, batch], default=str, sort_keys=True
    )
    note = json.dumps({"request": blake2b(facts.encode(), digest_size=16).hexdigest()})
    file = folder / PLAN
    if file.is_file():
        if file.read_text(encoding="utf-8") != note:
            raise UserError(
                f"--out {str(folder)!r} holds images of another request, model or batch size: repeat that one, or give "
                "another folder"
            )
        return
    if next_number(folder):
        raise UserError(
            f"--out {str(folder)!r} holds images that were not sampled with --resume or by several processes: give "
            "another folder"
        )
    write_text(file, note)
