"""`sfumato sample` of a diffusion model: the batches, each on disk before the next begins, strips and previews."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sfumato.cli.writing import NumberedImages, images_in, row_of_each, sheet_of
from sfumato.counts import how_many

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.model import LatentDiffusion
    from sfumato.pipeline.plan import Plan
    from sfumato.pipeline.request import DecoderName, SampleRequest
    from sfumato.sampling.loop import Step

ON_SHEET = 256
ON_STRIP = 8
ON_PREVIEW = 16


def sample_diffusion(
    model: "LatentDiffusion",
    request: "SampleRequest",
    planned: "Plan",
    folder: Path,
    facts: dict[str, Any],
    strip: int = 0,
    preview_every: int = 0,
    name: str | None = None,
) -> None:
    """Samples the images of a planned request batch by batch and prints where they are.

    Args:
        model: the model.
        request: what to sample.
        planned: the plan of the request.
        folder: where to; images that are there already stay.
        facts: what is written into every image beside its record.
        strip: number of steps whose expected images are written in a row each.
        preview_every: steps from one preview to the next; 0 for none.
        name: of the model, to be written into every image.
    """
    from sfumato.cli.progress import counting
    from sfumato.images import to_uint8
    from sfumato.pipeline import pipeline
    from sfumato.pipeline.recording import record_of
    from sfumato.provenance import computed_by, not_in_text, sample_body

    lost = not_in_text(request)
    images = NumberedImages(folder)
    record = record_of(model, request, planned)
    sheet: list[Tensor] = []
    t_start = time.monotonic()
    with counting("sampling", planned.steps * -(-planned.count // request.batch), "steps") as advance:
        watch = StepWatch(model, images, strip, preview_every, request.decoder, advance)
        for batch in pipeline.batches(model, replace(request, callback=watch), planned):
            before = len(images.written)
            computed = computed_by(model, len(batch.rows))
            for row, pixels in zip(batch.rows, to_uint8(batch.images).cpu(), strict=True):
                body = None if lost else sample_body(record, row, request)
                images.add(pixels, {**record.of(row), **facts}, request=body, computed=computed, name=name)
                if len(sheet) < ON_SHEET:
                    sheet.append(pixels)
            watch.finish(before)
    elapsed = time.monotonic() - t_start
    columns = row_of_each(planned.inputs.prompts, planned.inputs.labels)
    path = images.add_sheet(sheet_of(sheet, columns), {**record.shared(), **facts})
    typer.echo(f"{images_in(planned.count, elapsed)}: {folder}/{images.names}; sheet: {path}")


def sampler_line(planned: "Plan", why: bool) -> str:
    """The sampler, grid and number of steps, where `auto` chose them or the user asks why."""
    choice = planned.choice
    if not choice.reason and not why:
        return ""
    order = f" of order {order}" if (order := getattr(choice.sampler, "order", None)) else ""
    steps = how_many(planned.steps, "step")
    line = f"sampler: {choice.sampler.kind}{order}, {choice.grid.kind} grid, {steps}"
    if not choice.reason:
        return f"{line} (as requested)"
    return f"{line} (auto: {choice.reason})" if why else f"{line} (auto; `--why` explains)"


@dataclass
class StepWatch:
    """Called after every step of a batch: moves the bar, keeps what the strip needs, writes previews.

    A preview is decoded by the model's tiny decoder where there is one, the strip by the decoder of the images.
    """

    model: "LatentDiffusion"
    images: NumberedImages
    strip: int
    preview_every: int
    decoder: "DecoderName"
    advance: Callable[[int], None]
    expected: "list[Tensor]" = field(default_factory=list)
    """The expected clean latents of each step of the batch."""

    def __call__(self, step: "Step") -> None:
        from sfumato.images import save_png, to_uint8

        self.advance(1)
        if self.strip:
            self.expected.append(step.x0[:ON_STRIP].cpu())
        every = self.preview_every
        if every and (step.index + 1) % every == 0 and step.index + 1 < step.total:
            decoder: DecoderName = "full" if self.model.tiny is None else "tiny"
            images = to_uint8(self.model.decode(step.x0[:ON_PREVIEW], decoder)).cpu()
            save_png(self.images.folder / "preview.png", sheet_of(images))

    def finish(self, first: int) -> None:
        """Writes the strip of the batch whose first image is the `first` of those written; removes the preview."""
        import torch

        from sfumato.cli.numbering import beside, number_of
        from sfumato.images import save_first_free
        from sfumato.sampling.loop import equally_far

        if self.strip:
            chosen = equally_far(self.expected, self.strip)
            latents = [self.expected[index].to(self.model.device) for index in chosen]
            columns = [self.model.decode(x0, self.decoder).cpu() for x0 in latents]
            rows = torch.stack(columns, 1).flatten(0, 1)
            steps = ", ".join(str(index + 1) for index in chosen)
            paths = beside(self.images.folder, "strip", number_of(self.images.written[first]))
            save_first_free(paths, sheet_of(rows, len(chosen)), {"steps": steps})
            self.expected.clear()
        (self.images.folder / "preview.png").unlink(missing_ok=True)
