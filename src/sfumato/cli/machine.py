"""Options that most commands share: model, device, precision, and whether an output folder is replaced."""

from dataclasses import dataclass
from pathlib import Path

from sfumato.cli.flags import REQUIRED, flag


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where networks compute."""

    device: str = flag("auto", "machine", "auto (a GPU where there is one), cpu, cuda, cuda:1, ...")


@dataclass(frozen=True, kw_only=True)
class Machine(Device):
    """Where networks compute, and in which precision."""

    precision: str = flag("auto", "machine", "auto (bfloat16 where fast), float32 or bfloat16.")


@dataclass(frozen=True, kw_only=True)
class AModel:
    """A model."""

    model: Path = flag(
        REQUIRED,
        "what to sample",
        "A model folder, the folder of a run, zoo:toy or zoo:emoji, or hub:OWNER/NAME.",
        metavar="MODEL",
        argument=True,
    )


@dataclass(frozen=True, kw_only=True)
class ModelFlags(AModel, Machine):
    """A model, and where it computes."""


@dataclass(frozen=True, kw_only=True)
class Overwriting:
    """How to treat an output folder that is in use."""

    overwrite: bool = flag(False, "output", "Replace the contents of the output folder.", names=("--overwrite",))
