"""`sfumato import`: published checkpoints and diffusers folders -> a model folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer

from sfumato.cli.flags import REQUIRED, command, flag
from sfumato.cli.machine import Overwriting
from sfumato.foreign import printable
from sfumato.pipeline.options import Range


@dataclass(frozen=True, kw_only=True)
class ImportFlags(Overwriting):
    """The options of `sfumato import`."""

    source: Path = flag(
        REQUIRED,
        "what to sample",
        "A .ckpt or .safetensors file, or a diffusers folder.",
        metavar="SOURCE",
        argument=True,
    )
    out: Path = flag(REQUIRED, "output", "The model folder to write.", metavar="OUT", argument=True)
    config: Path | None = flag(
        None, "what to sample", "The original YAML [default: the one beside the file, else inferred]."
    )
    weights: Literal["ema", "live"] | None = flag(
        None, "what to sample", "Which of an original checkpoint's two sets to use [default: ema if it is there]."
    )
    tokenizer: str | None = flag(
        None, "what to sample", "For a text model: a tokenizer.json, a folder, or a hub name.", path=True
    )
    prediction: Literal["eps", "v", "flow"] | None = flag(
        None, "what to sample", "What the network predicts, if the file does not record it (DiT: eps, SiT: flow)."
    )
    autoencoder: str | None = flag(
        None,
        "what to sample",
        "For a DiT or SiT, which has no first stage: a model, a file or a diffusers folder that has it.",
        path=True,
    )
    heads: int | None = flag(
        None,
        "what to sample",
        "For a DiT or SiT of another width than the published ones: its attention heads.",
        Range(1, 65536, whole=True),
    )


@command(ImportFlags)
def import_(flags: ImportFlags) -> None:
    """Convert a checkpoint into a model folder.

    Reads checkpoints of latent diffusion, Stable Diffusion, DiT and SiT, of the original code or diffusers.
    """
    from sfumato.interop.convert import import_model

    done = import_model(
        flags.source,
        flags.out,
        flags.config,
        flags.weights,
        flags.tokenizer,
        flags.prediction,
        flags.overwrite,
        flags.autoencoder,
        flags.heads,
    )
    for note in done.notes:
        typer.echo(printable(note))
    typer.echo(printable(f"wrote {done.folder}"))
