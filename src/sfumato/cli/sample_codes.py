"""`sfumato sample` of the baseline: a transformer over codes."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sfumato.cli.flags import flag
from sfumato.cli.sample_rows import SampleSpec
from sfumato.cli.writing import NumberedImages, images_in, row_of_each, sheet_of
from sfumato.errors import UserError
from sfumato.pipeline.options import Range

if TYPE_CHECKING:
    from sfumato.baselines.model import CodeModel


@dataclass(frozen=True, kw_only=True)
class CodeFlags:
    """How a code is chosen: `sfumato.baselines.sampling.Choice`."""

    temperature: float = flag(
        1.0,
        "sampler",
        "Transformers over codes: 0 chooses the likeliest code each time.",
        Range(0.0, 1000.0),
    )
    top_k: int = flag(
        0,
        "sampler",
        "Transformers over codes: sample from this many of the likeliest codes; 0: all.",
        Range(0, 1_048_576, whole=True),
    )
    top_p: float = flag(
        1.0,
        "sampler",
        "Transformers over codes: sample from the likeliest codes whose probabilities add up to this.",
        Range(0.0, 1.0, above=True),
    )

    def settings(self) -> dict[str, float]:
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}


def one_scale(flag: str, guidance: Any) -> float | None:
    """The one scale for all images. Raises UserError for several."""
    if guidance is None or isinstance(guidance, float):
        return guidance
    listed = guidance.items() if isinstance(guidance, dict) else guidance
    shown = ",".join(f"{one[0]}={one[1]:g}" if isinstance(one, tuple) else f"{one:g}" for one in listed)
    raise UserError(f"{flag} {shown!r}: give one number for all images")


def sample_codes(
    model: "CodeModel", spec: SampleSpec, choice: CodeFlags, guidance: float, batch: int, folder: Path
) -> None:
    """Samples the images batch by batch, each batch on disk before the next begins, and prints where they are.

    Raises UserError for a condition that the model does not have.
    """
    from sfumato import __version__
    from sfumato.baselines.sampling import Choice
    from sfumato.cli.options import enough_memory, notes
    from sfumato.cli.progress import counting
    from sfumato.images import to_uint8

    images = NumberedImages(folder)
    facts: dict[str, Any] = {**choice.settings(), "guidance": guidance, "sfumato": __version__}
    how = Choice(choice.temperature, choice.top_k, choice.top_p)
    n = len(spec.seeds)
    batches = [slice(i, min(i + batch, n)) for i in range(0, n, batch)]
    h, w = model.network.size
    sheet = []
    t_start = time.monotonic()
    with enough_memory(min(batch, n)), notes(), counting("sampling codes", h * w * len(batches), "codes") as advance:
        for rows in batches:
            part = spec.rows(rows)
            pixels = model.sample_tensor(part.prompts, part.labels, part.seeds, how, guidance, lambda _: advance(1))
            for row, image in enumerate(to_uint8(pixels).cpu()):
                images.add(image, {**part.rows(slice(row, row + 1)).facts(), **facts})
                sheet.append(image)
    path = images.add_sheet(sheet_of(sheet, row_of_each(spec.prompts, spec.labels)), facts)
    typer.echo(f"{images_in(n, time.monotonic() - t_start)}: {folder}/{images.names}; sheet: {path}")
