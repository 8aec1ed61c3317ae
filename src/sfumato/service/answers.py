"""The shapes of answers, for the OpenAPI description."""

from typing import Any, Literal

from pydantic import BaseModel

from sfumato.service.jobs import State


class ErrorDetail(BaseModel):
    """One sentence on what is wrong, and the field that is meant."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """A refusal."""

    error: ErrorDetail


class ImageAnswer(BaseModel):
    """A finished image of a job."""

    index: int
    url: str
    width: int
    height: int
    seed: int
    settings: dict[str, Any]


class JobAnswer(BaseModel):
    """A job."""

    id: str
    task: str
    model: str
    state: State
    place: int | None
    created: float
    started: float | None
    finished: float | None
    step: int
    steps: int
    count: int
    progress: float
    seconds_left: float | None
    images: list[ImageAnswer]
    error: str | None
    notes: list[str]
    request: dict[str, Any]


class JobsAnswer(BaseModel):
    """Jobs, the newest first."""

    jobs: list[JobAnswer]


class ModelAnswer(BaseModel):
    """A model and what it takes; further fields describe its conditions."""

    model_config = {"extra": "allow"}

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    tasks: list[str]
    takes: list[str]
    image_size: list[int]
    loaded: bool
    digest: str | None


class ModelsAnswer(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[ModelAnswer]


class UploadAnswer(BaseModel):
    """An uploaded image, and the settings inside it if it was made here."""

    id: str
    url: str
    width: int
    height: int
    mode: str
    settings: dict[str, Any] | None
    parameters: str | None


class OptionsAnswer(BaseModel):
    """The declarations of all tasks, and the bounds."""

    version: str
    limits: dict[str, int]
    samplers: list[dict[str, str]]
    grids: list[str]
    tasks: dict[str, Any]


class StatusAnswer(BaseModel):
    """Whether the service runs."""

    status: str
