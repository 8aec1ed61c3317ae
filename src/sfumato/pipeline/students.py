"""Sampling from a student: one network call a step, with the guidance scale as an input of the network."""

from collections.abc import Sequence
from dataclasses import fields

from sfumato.errors import UserError
from sfumato.model_config import DiffusionConfig, StudentConfig
from sfumato.pipeline.parts import SecondStage
from sfumato.pipeline.request import DEFAULT_STEPS, SampleRequest
from sfumato.sampling.auto import Choice
from sfumato.sampling.flow_map import FlowMapConfig
from sfumato.sampling.grids import GridConfig
from sfumato.sampling.table import STUDENT_SAMPLER, SamplerConfig

STUDENT_STEPS = 4
"""Steps of a student by default: more hardly change its images, fewer lose details."""
NOT_OF_STUDENTS = (
    "negative",
    "interval",
    "rescale",
    "projection",
    "autoguide",
    "classifier",
    "image_guidance",
    "reuse",
)
"""Options that change or combine expected clean latents of one time, which a student does not predict."""


def default_steps(config: DiffusionConfig) -> int:
    """The number of steps of a request that names none, for a model of this configuration."""
    return DEFAULT_STEPS if config.student is None else STUDENT_STEPS


def calls_twice(second: SecondStage) -> bool:
    """Whether a guided step calls the network twice, with the condition and without: a student's scale is an input."""
    config = second.config
    return config.student is None and config.condition_dropout > 0 and second.conditioner is not None


def check_student(student: StudentConfig, request: SampleRequest, scales: list[float]) -> None:
    """Raises UserError for an option that students do not have, and a guidance scale that this one does not know."""
    usual = {each.name: each.default for each in fields(SampleRequest)}
    for name in NOT_OF_STUDENTS:
        if getattr(request, name) != usual[name]:
            raise UserError(
                f"{name.replace('_', ' ')} is not an option of a student, whose network has guidance built in and is "
                f"called once a step: leave it out, or sample from its teacher, the model {student.teacher}"
            )
    _check_scales(student, scales)


def check_scales(second: SecondStage, scales: Sequence[float]) -> None:
    """Raises UserError for a guidance scale that a student does not know; other models know all."""
    if second.config.student is not None:
        _check_scales(second.config.student, scales)


def _check_scales(student: StudentConfig, scales: Sequence[float]) -> None:
    beyond = next((scale for scale in scales if not student.low <= scale <= student.high), None)
    if beyond is not None:
        known = "1" if student.low == student.high == 1 else f"{student.low:g} to {student.high:g}"
        raise UserError(
            f"guidance {beyond:g} is not one of the scales that this student was distilled for: give {known}, or "
            f"sample from its teacher, the model {student.teacher}"
        )


def student_choice(student: StudentConfig, named: str | SamplerConfig, grid: GridConfig | None) -> Choice:
    """The sampler `flow-map`, with evenly spaced steps unless the request names a grid. Raises UserError for another
    sampler."""
    if not isinstance(named, str | FlowMapConfig):
        raise UserError(
            f"sampler {named.kind!r} does not suit a student, whose network computes whole steps: use "
            f"{STUDENT_SAMPLER} "
            f"or auto, or sample from its teacher, the model {student.teacher}"
        )
    reason = "a student's network takes a step of any length in one call" if isinstance(named, str) else ""
    return Choice(FlowMapConfig(), grid or GridConfig(kind="trailing"), reason)


def refuse_for_others(sampler: SamplerConfig) -> None:
    """Raises UserError where an ordinary model is to be sampled as a student."""
    if isinstance(sampler, FlowMapConfig):
        raise UserError(
            f"sampler {STUDENT_SAMPLER!r} is for students, and this model is none: make one with `sfumato distill "
            "MODEL`, or choose auto"
        )
