"""Sentences on a model's strengths and weaknesses, by the numbers of its evaluation and its training log."""

from collections.abc import Mapping, Sequence
from typing import Any

from sfumato.fit.evaluate import Evaluation
from sfumato.fit.plan import FitPlan
from sfumato.fit.quality import FEW
from sfumato.report.fit_result import KernelScore
from sfumato.report.format import percent

SHARP, FAIR = 28.0, 22.0
COPIES = 0.1
FALLING = 0.01
"""A loss that falls by more than this over the last fifth of a training, in its own unit, is still falling."""
VARIED = 0.7
FEW_REAL = 50
"""With fewer real images the kernel distance is imprecise: it is unbiased, but varies with the choice of images."""


def sentences(plan: FitPlan, found: Evaluation, log: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Reconstruction, agreement with conditions, variety, memorisation, and whether a longer training would help."""
    return tuple(
        text
        for text in (
            _reconstruction(plan, found.first_stage.psnr),
            _agreement(plan, found),
            _variety(found.variety),
            _kernel(found.kernel),
            _memorisation(plan, found),
            _falling(plan, log),
        )
        if text
    )


def _reconstruction(plan: FitPlan, psnr: float) -> str:
    where = "training images, as none are held out" if plan.held_out == 0 else "held-out images"
    few = plan.held_out > 0 and plan.trained < FEW
    lost = "much is lost, less of training images" if few else "much is lost: samples cannot be sharp"
    judged = (
        "details are kept"
        if psnr >= SHARP
        else "shapes and colours are kept, fine details are smeared"
        if psnr >= FAIR
        else lost
    )
    return f"Stage 1 reconstructs {where} at {psnr:.1f} dB: {judged}."


def _agreement(plan: FitPlan, found: Evaluation) -> str:
    agreed = found.agreement
    if agreed is None:
        return ""
    what = "the class" if plan.conditioner == "class" else "a word of the caption"
    judged = (
        "the condition hardly changes the samples yet"
        if agreed.share < 1.3 * agreed.chance + 0.02
        else "the condition is followed in part"
        if agreed.share < 0.6
        else "the condition is followed"
    )
    return (
        f"For {percent(agreed.share)} of the samples the nearest training image shares {what} (by chance "
        f"{percent(agreed.chance)}): {judged}."
    )


def _variety(variety: float | None) -> str:
    if variety is None:
        return ""
    judged = "they are as varied" if variety >= VARIED else "they are more alike than the images"
    return f"Samples differ from each other {percent(variety)} as much as training images do: {judged}."


def _kernel(kernel: KernelScore | None) -> str:
    if kernel is None:
        return ""
    few = f" With {kernel.real} real images it is only a rough estimate." if kernel.real < FEW_REAL else ""
    return (
        f"The kernel distance between {kernel.samples} samples and {kernel.real} real images is {kernel.value:.3f}; "
        f"between training images and these it is {kernel.training:.3f} (0: alike; features of {kernel.features}).{few}"
    )


def _memorisation(plan: FitPlan, found: Evaluation) -> str:
    if found.memorised is None:
        return "There are too few training images to measure memorisation."
    share = found.memorised.share
    if share == 0:
        return "No sample is a copy of a training image (f_mem 0 %)."
    if share < COPIES:
        return f"Hardly any sample is a copy of a training image (f_mem {percent(share)})."
    few = " A model memorises so few images in any case; more images help." if plan.trained < FEW else ""
    return f"{percent(share)} of the samples are copies of training images (f_mem).{few}"


def _falling(plan: FitPlan, log: Sequence[Mapping[str, Any]]) -> str:
    values = [float(line["loss_smoothed"]) for line in log if isinstance(line.get("loss_smoothed"), int | float)]
    if len(values) < 10:
        return ""
    tail = values[-max(2, len(values) // 5) :]
    third = max(1, len(tail) // 3)
    fallen = sum(tail[:third]) / third - sum(tail[-third:]) / third
    if fallen > FALLING:
        longer = "makes samples sharper, and more of them copies" if plan.trained < FEW else "gives better samples"
        return f"The loss of stage 2 was still falling at the end: longer training {longer}."
    return "The loss of stage 2 hardly fell at the end: a larger network or more images help more than more time."
