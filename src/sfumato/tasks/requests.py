"""A task as requests for the pipeline: one for each image, map or layout that is given, and what finishes its image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

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
"""What a task fills in itself."""


def task_options(**changes: Any) -> SampleRequest:
    """The options that tasks begin with: dpmpp-2m, windows where the image is large, one image at a time."""
    return SampleRequest(**{"sampler": "dpmpp-2m", "window": None, "batch": 1, **changes})


@dataclass(frozen=True)
class Task(Generic[T]):
    """One image to make.

    Attributes:
        request: for one image: what conditions it, its size, the latents it begins from or keeps.
        finish: what the image (3, H, W) of the request's size, on the CPU in about [-1, 1], becomes.
    """

    request: SampleRequest
    finish: Callable[[Tensor], T]

    @property
    def trajectory(self) -> tuple[Any, ...]:
        """Tasks that agree in this go through the same steps: they can be sampled together."""
        request = self.request
        begins = None if request.initial is None else request.strength
        return (request.size, begins, request.known is not None, request.jumps)


def checked_options(options: SampleRequest | None) -> SampleRequest:
    """The options, or the usual ones. Raises UserError for options that the task itself fills in."""
    options = options or task_options()
    usual = SampleRequest()
    for name in OF_THE_TASK:
        if getattr(options, name) != getattr(usual, name):
            raise UserError(f"{name} is not an option of a task's sampling: give it to the task itself")
    return options


def run_tasks(model: LatentDiffusion, tasks: Sequence[Task[T]], options: SampleRequest) -> list[T]:
    """options.count results (1 by default) of every task, those of a task one after the other.

    The k-th result has the seed options.seed + k, whatever options.batch is. Raises UserError for requests that do not
    fit the model.
    """
    wanted = [task for task in tasks for _ in range(options.count or 1)]
    seeds = list(options.seeds) if options.seeds is not None else [options.seed + k for k in range(len(wanted))]
    if len(seeds) != len(wanted):
        raise UserError(f"{len(seeds)} seeds were given for {len(wanted)} results")
    made: list[T] = []
    notes: list[str] = []
    while len(made) < len(wanted):
        first = len(made)
        together = _alike(wanted[first : first + options.batch])
        rows = slice(first, first + len(together))
        request = merged([task.request for task in together], replace(options, count=None, seeds=seeds[rows]))
        samples = pipeline.sample(model, request)
        notes += samples.plan.notes
        made += [task.finish(image) for task, image in zip(together, samples.images.cpu(), strict=True)]
    warn_of(notes)
    return made


def merged(requests: Sequence[SampleRequest], options: SampleRequest) -> SampleRequest:
    """One request for the images of several that go through the same steps; how to sample is said by the options."""
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
        jumps=first.jumps,
    )


def _alike(tasks: Sequence[Task[T]]) -> list[Task[T]]:
    """The first tasks, as far as they go through the same steps."""
    differs = (i for i, task in enumerate(tasks) if task.trajectory != tasks[0].trajectory)
    return list(tasks[: next(differs, len(tasks))])


def _joined(values: Sequence[Any]) -> Any:
    """Tensors of a row each as one, other values as a list; None where the first is None."""
    if values[0] is None:
        return None
    return torch.cat(list(values)) if isinstance(values[0], Tensor) else list(values)


def _joined_fields(fields: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each field's rows one after the other."""
    made = {}
    for name, value in fields[0].items():
        rows = [each[name] for each in fields]
        made[name] = torch.cat(rows) if isinstance(value, Tensor) else [row for each in rows for row in each]
    return made
