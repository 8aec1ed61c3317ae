"""Reports the cost of computing images, once before it starts and only if it is high."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import torch

    from sfumato.estimate.images import ImageWork

LARGE_SECONDS = 20.0


def say_cost(
    work: "ImageWork", device: "torch.device", computing: "torch.autocast", advice: str, subject: str = ""
) -> None:
    """Prints the operations and about how long they take; nothing where that is below LARGE_SECONDS.

    advice: how to make it less.
    subject: of the largest step, for an error.

    Raises UserError where a single step takes too long (see `check_affordable`).
    """
    from sfumato.estimate.images import check_affordable, seconds

    H, W = work.size
    check_affordable(work, device.type, subject or f"a single step at {H}x{W} (height x width)", advice)
    about = seconds(work, device, "bfloat16" if computing._enabled else "float32")
    if about >= LARGE_SECONDS:
        images = f"{work.images} images of up to" if work.images > 1 else "an image of"
        typer.echo(
            f"{images} {H}x{W} (height x width): {work.total:.1e} operations, about {_duration(about)} at this "
            f"machine's speed; to make it less, {advice}",
            err=True,
        )


def _duration(seconds: float) -> str:
    """Roughly: 40 seconds, 12 minutes, 3.5 hours, 2 days."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.0f} seconds"
