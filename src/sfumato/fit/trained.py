"""The plan of a fit with the lengths that it was given later, and with those that it had in the end."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sfumato.fit.folder import DIFFUSION, NUMBERS, STEPS
from sfumato.fit.lines import plan_lines
from sfumato.fit.plan import FitPlan, StagePlan, explained_again
from sfumato.plain_json import numbers_in
from sfumato.report.result import Training


def shown_lines(plan: FitPlan, out: Path | None) -> list[str]:
    """The lines of a plan; of a fit in the folder `out` with the steps that stage 2 was given when it began, and as it
    was trained where the fit is finished.

    Raises UserError if the file of the steps is damaged.
    """
    if out is None:
        return plan_lines(plan)
    try:
        trained = json.loads((out / NUMBERS).read_text(encoding="utf-8"))["plan"]
    except (OSError, ValueError, KeyError, TypeError):
        steps = int(numbers_in(out / STEPS).get(DIFFUSION, plan.second.steps))
        changed = replace(plan, second=replace(plan.second, steps=steps))
        return plan_lines(plan if changed == plan else explained_again(changed))
    return [str(line) for line in trained] if isinstance(trained, list) else plan_lines(plan)


def as_trained(plan: FitPlan, trainings: tuple[Training, Training], phases: Sequence[float]) -> FitPlan:
    """The plan with the steps and times of both trainings, and its sentences about them.

    phases: seconds of stage 1 with reading the images, of encoding them, of stage 2, and of the evaluation.
    """
    first, second = trainings
    return explained_again(
        replace(
            plan,
            first=_stage(plan.first, first, first.seconds),
            second=_stage(plan.second, second, phases[2]),
            preparing=max(0.0, phases[0] - first.seconds),
            encoding=phases[1],
            page=phases[3],
        )
    )


def _stage(stage: StagePlan, trained: Training, seconds: float) -> StagePlan:
    return replace(stage, steps=trained.steps, image_seconds=seconds / max(1, trained.images))
