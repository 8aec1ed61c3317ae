"""How many images may be computed at once without changing a bit of any: measured, not assumed.

Libraries choose their kernels, and with them the order of their sums, by the number of rows, so the last bits of an
image may depend on the size of its batch. Results depend neither on the rows' order nor on their contents, so that
images of two batch sizes are compared once for each kind of request; a size that changes a bit is not used.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sfumato.pipeline import pipeline
from sfumato.pipeline.options import options_of
from sfumato.pipeline.plan import plan
from sfumato.pipeline.request import SampleRequest
from sfumato.service.loading import Loaded
from sfumato.service.units import NOT_COMPARED, PER_IMAGE, Unit, way_of
from sfumato.tasks.requests import merged

WITHOUT_EFFECT = ("steps", "times", "grid", "shift", "eta", "interval", "strength", "jumps")
"""Options that change neither the networks' calls nor their shapes."""
REMEMBERED = 1024


@dataclass
class Widths:
    """The numbers of images that may be computed at once.

    Attributes:
        most: the largest of them.
        lanes: if not 0, always this number; a batch is filled up with copies.
    """

    most: int
    lanes: int = 0
    _known: "OrderedDict[tuple[Any, ...], list[int]]" = field(default_factory=OrderedDict)

    def of(self, unit: Unit, loaded: Loaded, waiting: int) -> int:
        """How many units of the way of `unit` to compute now, of `waiting` ones."""
        if self.lanes:
            return min(waiting, self.lanes)
        if waiting < 2 or self.most < 2:
            return 1
        key = (unit.job.known.id, unit.job.known.stamp, *_kernels_of(unit.request))
        if key not in self._known:
            self._known[key] = safe_widths(loaded, unit.request, self.most)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return max(width for width in self._known[key] if width <= waiting)

    def rows(self, units: Sequence[Unit]) -> list[Unit]:
        """The rows of a batch: the units, and copies of the last up to `lanes`."""
        return [*units, *[units[-1]] * (self.lanes - len(units))]


def safe_widths(loaded: Loaded, request: SampleRequest, most: int) -> list[int]:
    """1 and its doubles up to `most`, as far as two steps of that many images give the same bytes as each alone."""
    probe = replace(request, steps=2, times=None, jumps=None, callback=None, on_record=None)
    alone = {seed: _images(loaded, probe, [seed]) for seed in (0, 1)}
    found, width = [1], 2
    while width <= most:
        images = _images(loaded, probe, [0, *[2] * (width - 2), 1])
        if not (torch.equal(images[:1], alone[0]) and torch.equal(images[-1:], alone[1])):
            break
        found.append(width)
        width *= 2
    return found


def _images(loaded: Loaded, request: SampleRequest, seeds: list[int]) -> Tensor:
    joined = merged([request] * len(seeds), replace(request, count=None, seeds=seeds, batch=len(seeds)))
    planned = plan(loaded.model, joined)
    (batch,) = pipeline.batches(loaded.model, joined, planned)
    return batch.images.cpu()


def _kernels_of(request: SampleRequest) -> tuple[Any, ...]:
    """The facts on which the choice of kernels depends."""
    names = [one.name for one in options_of(SampleRequest) if one.name not in NOT_COMPARED]
    values = dict(zip(names, way_of(request), strict=True))
    guided = request.guidance != 1.0
    return tuple(
        guided if name == "guidance" else value for name, value in values.items() if name not in WITHOUT_EFFECT
    )


assert set(WITHOUT_EFFECT).isdisjoint(PER_IMAGE)
