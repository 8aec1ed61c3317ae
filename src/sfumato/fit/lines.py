"""A plan for people, in lines."""

from sfumato.counts import how_many
from sfumato.fit.facts import MachineFacts
from sfumato.fit.plan import FitPlan, StagePlan, gib
from sfumato.report.format import duration, millions


def plan_lines(plan: FitPlan) -> list[str]:
    """The plan, the expected quality, and the reasons."""
    machine, side = plan.machine, plan.latent_side
    precision = "bfloat16" if machine.reduced else "float32"
    cores = f", {_cores(machine)}" if machine.device == "cpu" else ""
    lines = [
        f"machine      {machine.name}{cores}, {precision}, {gib(machine.memory)} free",
        f"images       {plan.images:,} at {plan.size}x{plan.size}, {plan.held_out:,} of them held out",
        f"condition    {_condition(plan)}",
        f"latents      {plan.latent_channels}x{side}x{side}, f = {plan.factor}",
        f"reading      {duration(plan.preparing)}",
        f"stage 1      {_stage(plan.first)}",
        f"encoding     {duration(plan.encoding)}",
        f"stage 2      {_stage(plan.second)}",
        f"page         {duration(plan.page)}, {how_many(plan.samples, 'sample')}",
        f"in all       {duration(plan.total)} of {duration(plan.seconds)}, {gib(plan.memory)} of memory",
        "",
        plan.quality,
    ]
    return [*lines, *(f"  {reason}" for reason in plan.reasons), *(f"! {warning}" for warning in plan.warnings)]


def _cores(machine: MachineFacts) -> str:
    text = f"{machine.cores} core{'' if machine.cores == 1 else 's'}"
    if machine.threads in (0, machine.cores):
        return text
    why = "set" if machine.threads_fixed else f"measured to be faster than {machine.cores} now"
    return f"{text}, {machine.threads} thread{'' if machine.threads == 1 else 's'} ({why})"


def _stage(stage: StagePlan) -> str:
    step = stage.batch * stage.accumulate
    return (
        f"{duration(stage.seconds)}, {stage.network} network of {millions(stage.parameters)} parameters, "
        f"{how_many(stage.steps, 'step')} of {step}: {how_many(stage.images, 'image')}"
    )


def _condition(plan: FitPlan) -> str:
    match plan.conditioner:
        case "text":
            return f"captions ({plan.data.captions:,} different ones)"
        case "class":
            return how_many(len(plan.data.classes), "class", "classes")
        case "semantic":
            return "label maps"
        case "layout":
            return "boxes"
    return "none"
