"""Tasks as requests for the pipeline: one for each image, map or layout, with a function that finishes its image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from sfumato.conditioning.condition import stack
from sfumato.counts import how_many
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.pipeline import pipeline
from sfumato.pipeline.plan import warn_of
from sfumato.pipeline.request import SampleRequest

T = TypeVar("T")

OF_THE_TASK = (
    "prompt",
    "label",
    "negative",
    "size",
    "condition",
    "fields",
    "noise",
    "initial",
    "strength",
    "known",
    "keep",
    "jumps",
)
"""Options that a task sets itself."""


def task_options(**changes: Any) -> SampleRequest:
    """The default options of tasks: windows where the image is large, one image at a time."""
    return SampleRequest(**{"window": None, "batch": 1, **changes})


@dataclass(frozen=True)
class Task(Generic[T]):
    """One image to sample.

    Attributes:
        request: for one image: its condition, its size, the latents it starts from or keeps.
        finish: converts the image (3, H, W) of the request's size, on the CPU in about [-1, 1], to the result.
    """

    request: SampleRequest
    finish: Callable[[Tensor], T]

    @property
    def trajectory(self) -> tuple[Any, ...]:
        """Tasks with equal values have the same sampling steps: they can be sampled in one batch."""
        request = self.request
        begins = None if request.initial is None else request.strength
        return (request.size, begins, request.known is not None, request.jumps)


def checked_options(options: SampleRequest | None) -> SampleRequest:
    """The options, or the defaults. Raises UserError for options that the task sets itself."""
    options = options or task_options()
    usual = SampleRequest()
    for name in OF_THE_TASK:
        if getattr(options, name) != getattr(usual, name):
            raise UserError(f"{name} is not an option of a task's sampling: pass it to the task")
    return options


def run_tasks(model: LatentDiffusion, tasks: Sequence[Task[T]], options: SampleRequest) -> list[T]:
    """options.count results (1 by default) of every task, those of a task one after the other.

    The k-th result has the seed options.seed + k, whatever options.batch is. Raises UserError for requests that do not
    fit the model.
    """
    queue = [task for task in tasks for _ in range(options.count or 1)]
    seeds = list(options.seeds) if options.seeds is not None else [options.seed + k for k in range(len(queue))]
    if len(seeds) != len(queue):
        raise UserError(f"{how_many(len(seeds), 'seed was', 'seeds were')} given for {len(queue)} results")
    results: list[T] = []
    notes: list[str] = []
    while len(results) < len(queue):
        first = len(results)
        group = _same_steps(queue[first : first + options.batch])
        rows = slice(first, first + len(group))
        request = merged([task.request for task in group], replace(options, count=None, seeds=seeds[rows]))
        samples = pipeline.sample(model, request)
        notes += samples.plan.notes
        results += [task.finish(image) for task, image in zip(group, samples.images.cpu(), strict=True)]
    warn_of(notes)
    return results


def merged(requests: Sequence[SampleRequest], options: SampleRequest) -> SampleRequest:
    """One request for several with the same sampling steps; the sampling options come from `options`."""
    first = requests[0]
    return replace(
        options,
        count=len(requests),
        prompt=_joined([request.prompt for request in requests]),
        label=_joined([request.label for request in requests]),
        negative=_joined([request.negative for request in requests]),
        size=first.size,
        fields=None if not first.fields else _joined_fields([dict(request.fields or {}) for request in requests]),
        initial=_joined([request.initial for request in requests]),
        strength=first.strength,
        known=_joined([request.known for request in requests]),
        keep=_joined([request.keep for request in requests]),
        noise=_joined([request.noise for request in requests]),
        condition=None if first.condition is None else stack([one.condition for one in requests if one.condition]),
        jumps=first.jumps,
    )


def _same_steps(tasks: Sequence[Task[T]]) -> list[Task[T]]:
    """The longest prefix of tasks with the same sampling steps."""
    differs = (i for i, task in enumerate(tasks) if task.trajectory != tasks[0].trajectory)
    return list(tasks[: next(differs, len(tasks))])


def _joined(values: Sequence[Any]) -> Any:
    """Tensors of one row each concatenated, other values as a list; None where the first is None."""
    if values[0] is None:
        return None
    return torch.cat(list(values)) if isinstance(values[0], Tensor) else list(values)


def _joined_fields(fields: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rows of each field, concatenated."""
    joined = {}
    for name, value in fields[0].items():
        rows = [each[name] for each in fields]
        joined[name] = torch.cat(rows) if isinstance(value, Tensor) else [row for each in rows for row in each]
    return joined
