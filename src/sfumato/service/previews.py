"""Previews while an image forms: the expected image of a step, decoded cheaply and not too often."""

import base64
import io
import time
from dataclasses import dataclass

from torch import Tensor

from sfumato.images import to_pil
from sfumato.model import LatentDiffusion

SHARE = 0.1
"""Of the time of sampling that previews may take."""
LEAST_PAUSE = 0.2
LONGEST_SIDE = 512


@dataclass
class PreviewClock:
    """When the next preview is due: previews take at most SHARE of the time."""

    due: float = 0.0

    def is_due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self.due

    def took(self, seconds: float) -> None:
        """A preview has just been made."""
        self.due = time.monotonic() + max(LEAST_PAUSE, seconds / SHARE)


def preview_png(model: LatentDiffusion, x0: Tensor) -> bytes:
    """The PNG of one expected clean latent (1, C, h, w), by the tiny decoder where there is one."""
    image = to_pil(model.decode(x0, "full" if model.tiny is None else "tiny")[0].cpu())
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def data_url(png: bytes) -> str:
    """A PNG as text that a page shows."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
