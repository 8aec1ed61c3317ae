"""A training's configuration from what is typed: file, overrides, folder of images, start, first stage."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

    from sfumato.model import LatentDiffusion
    from sfumato.training.classifier import ClassifierRun
    from sfumato.training.diffusion_run import DiffusionRun

Run = TypeVar("Run", "DiffusionRun", "ClassifierRun")


OF_CONDITIONS = (("train", "condition_dropout"), ("train", "part_dropout"), ("objective", "condition_mean"))
"""Settings that mean nothing without a condition."""
OF_MINUTES = ("minutes", "step_limits")
"""Settings of `train` that replace `train.steps`."""


def with_overrides(config: str, overrides: Sequence[str], schema: "type[BaseModel]") -> dict[str, Any]:
    """The raw configuration with the overrides in it; prints what an override drops.

    What a file asks for that is about conditions goes where an override takes the conditioner away, and a file's
    minutes go where an override gives a number of steps.
    """
    from sfumato.config import apply_overrides, read_source

    def say(message: str) -> None:
        typer.echo(message, err=True)

    raw = apply_overrides(read_source(config), overrides, schema, say)
    typed = {override.partition("=")[0] for override in overrides}
    if typed & {"conditioner", "conditioner.kind"} and raw.get("conditioner") == {"kind": "none"}:
        for part, name in OF_CONDITIONS:
            given = raw.get(part)
            if isinstance(given, dict) and name in given and f"{part}.{name}" not in typed:
                say(f"conditioner.kind=none: {part}.{name} does not apply to it, dropped")
                del given[name]
    train = raw.get("train")
    if "train.steps" in typed and isinstance(train, dict) and not any(f"train.{name}" in typed for name in OF_MINUTES):
        for name in OF_MINUTES:
            if train.get(name) is not None:
                say(f"train.steps={train.get('steps')}: train.{name} of the configuration does not apply, dropped")
                del train[name]
    return raw


def check_given_once(overrides: Sequence[str], options: Mapping[str, tuple[str, object]]) -> None:
    """Raises UserError for a setting that an override and an option both give.

    options: (name, value) by the setting's key; a value of None is not given.
    """
    from sfumato.errors import UserError

    for override in overrides:
        for key, (name, value) in options.items():
            typed = override.partition("=")[0]
            if value is not None and (typed == key or typed.endswith(f".{key}")):
                raise UserError(f"{key} is given twice, as {name} {str(value)!r} and as {override!r}: keep one of them")


def retyping(
    command: str, config: str, overrides: Sequence[str], options: Mapping[str, str | Path | None]
) -> Callable[[str], str]:
    """The command as it was typed, with another setting of the conditioner, for the shell."""

    def with_setting(setting: str) -> str:
        kept = [override for override in overrides if not override.startswith("conditioner")]
        given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
        return shlex.join(["sfumato", "train", command, config, setting, *kept, *given])

    return with_setting


def with_data(raw: dict[str, Any], data: str | Path | None, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """The raw configuration with `--data` in it; a configuration for the toy world given images reads the images.

    What only the toy world knows, such as its length, is then left out; the rest of `data` holds for the images. Their
    kind is the configured one, or that of the place. Raises UserError where images are needed and none are named.
    """
    from sfumato.config import section
    from sfumato.data.folder_config import FolderConfig
    from sfumato.data.kinds import kind_of
    from sfumato.data.toyworld.dataset import ToyWorldConfig
    from sfumato.errors import UserError

    given = section(raw, "data")
    if size is not None:
        given.setdefault("size", list(size))
    if data is not None:
        place, kind = data_place(str(data)), given.get("kind", "folder")
        if kind == "toy":
            toy = ToyWorldConfig.model_fields.keys() - FolderConfig.model_fields.keys()
            given = {"size": 64} | {name: value for name, value in given.items() if name not in toy}
        given |= {"kind": kind_of(place) if kind in ("toy", "folder") else kind, "path": place}
    elif given.get("kind", "folder") == "folder" and "path" not in given:
        raise UserError("--data is missing: give the folder of images to train on")
    return {**raw, "data": given}


def data_place(text: str, name: str = "--data") -> str:
    """A folder or an address of images as typed, with ~ expanded. Raises UserError for what is neither."""
    from sfumato.data.kinds import checked_place
    from sfumato.errors import UserError

    try:
        return checked_place(text, name)
    except ValueError as error:
        raise UserError(str(error)) from None


def with_start(raw: dict[str, Any], start: Path | None) -> dict[str, Any]:
    """The raw configuration with `--start` in it."""
    return raw if start is None else {**raw, "start": str(start)}


def on_first_stage(
    raw: dict[str, Any], schema: "type[Run]", config: str, data: str | Path | None, autoencoder: Path
) -> "tuple[Run, LatentDiffusion]":
    """The run of a raw configuration, and the first stage that it trains on; without a size, images have its own.

    `autoencoder` is a run or model folder, or `pixels` for a first stage that changes nothing.
    """
    from sfumato.config import parse
    from sfumato.model import pixel_space
    from sfumato.model_folder import load
    from sfumato.training.data import height_width

    if str(autoencoder) == "pixels":
        run = parse(with_data(raw, data), schema, config)
        return run, pixel_space(height_width(run.data))
    first = load(autoencoder)
    return parse(with_data(raw, data, first.config.image_size), schema, config), first
