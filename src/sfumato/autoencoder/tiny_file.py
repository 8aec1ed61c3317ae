"""A tiny decoder distilled from a model's own, for previews: its file in the model folder, and whose it is.

It is one file beside the others, its configuration in the file's header: a folder without it means what it meant, and
the model's digest does not know of it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from sfumato.autoencoder.model import Autoencoder, autoencoder_digest
from sfumato.autoencoder.tiny import TinyDecoder, TinyDecoderConfig
from sfumato.checkpoint import load_into, load_tensors, save_tensors
from sfumato.config import parse
from sfumato.errors import UserError
from sfumato.schema import Schema
from sfumato.versions import TINY_DECODER_FILE

FILE = TINY_DECODER_FILE


class DistilledConfig(Schema):
    """The header of the file. `autoencoder` names the first stage's weights, `about` the training and its outcome."""

    format: Literal[1] = 1
    decoder: TinyDecoderConfig
    autoencoder: str
    about: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class DistilledDecoder:
    """A tiny decoder ready for use. Made by `load_distilled` or by training."""

    config: DistilledConfig
    network: TinyDecoder

    def save(self, folder: Path) -> None:
        """Writes its file into a model folder, in the place of one that is there."""
        save_tensors(folder / FILE, self.network.state_dict(), self.config.model_dump(mode="json"))


def load_distilled(folder: Path, autoencoder: Autoencoder) -> DistilledDecoder | None:
    """The tiny decoder in a model folder, None where there is none.

    Raises UserError for a file that is damaged, or that was distilled from another autoencoder than this.
    """
    path = folder / FILE
    if not path.exists():
        return None
    tensors, header = load_tensors(path)
    config = parse(header, DistilledConfig, str(path))
    if config.autoencoder != autoencoder_digest(autoencoder):
        raise UserError(
            f"{str(path)!r} was distilled from another autoencoder than the one beside it: remove the file, and make "
            "it anew with `sfumato distill-decoder`"
        )
    with torch.device("meta"):
        network = TinyDecoder(config.decoder)
    load_into(network, tensors, str(path))
    network.eval().requires_grad_(False)
    return DistilledDecoder(config, network)
