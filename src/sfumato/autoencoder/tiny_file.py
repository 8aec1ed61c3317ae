"""A tiny decoder distilled from a model's decoder, for previews: its file in the model
folder.

It is one separate file with its configuration in the header: the rest of the folder is unchanged by it, and the model's
digest does not include it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sfumato.autoencoder.model import Autoencoder, autoencoder_digest, weights_digest
from sfumato.autoencoder.tiny import TinyDecoder, TinyDecoderConfig
from sfumato.checkpoint import load_into, load_tensors, save_tensors
from sfumato.config import parse
from sfumato.errors import UserError
from sfumato.nn.init import without_weights
from sfumato.schema import Schema
from sfumato.stored_precision import Bits
from sfumato.versions import TINY_DECODER_FILE

FILE = TINY_DECODER_FILE


class DistilledConfig(Schema):
    """The header of the file. `autoencoder` identifies the first stage's weights, `about` describes its training."""

    format: Literal[1] = 1
    decoder: TinyDecoderConfig
    autoencoder: str
    about: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class DistilledDecoder:
    """A tiny decoder ready for use. Created by `load_distilled` or by training."""

    config: DistilledConfig
    network: TinyDecoder

    def save(self, folder: Path, bits: Bits | None = None) -> None:
        """Writes its file into a model folder, replacing an existing one.

        With `bits` its weights are stored in 8 or 16 bits like those of the autoencoder in that folder, which it then
        belongs to: rounding has changed its digest.
        """
        config = self.config
        if bits is not None:
            weights, _ = load_tensors(folder / "autoencoder.safetensors")
            config = config.model_copy(update={"autoencoder": weights_digest(weights)})
        save_tensors(folder / FILE, self.network.state_dict(), config.model_dump(mode="json"), bits=bits)


def load_distilled(folder: Path, autoencoder: Autoencoder) -> DistilledDecoder | None:
    """The tiny decoder in a model folder, None if there is none.

    Raises UserError for a file that is damaged, or that was distilled from another autoencoder than this.
    """
    path = folder / FILE
    if not path.exists():
        return None
    tensors, header = load_tensors(path)
    config = parse(header, DistilledConfig, str(path))
    if config.autoencoder != autoencoder_digest(autoencoder):
        raise UserError(
            f"{str(path)!r} was distilled from another autoencoder than the one in this folder: remove the file and "
            "create a new one with `sfumato distill-decoder`"
        )
    with without_weights():
        network = TinyDecoder(config.decoder)
    load_into(network, tensors, str(path))
    network.eval().requires_grad_(False)
    return DistilledDecoder(config, network)
