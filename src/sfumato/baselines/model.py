"""A trained transformer over codes: its parts, and their folder, with the VQ autoencoder inside."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.autoencoder.model import VQConfig
from sfumato.baselines.network import CodeTransformer, CodeTransformerConfig
from sfumato.baselines.sampling import Choice, sample_codes
from sfumato.checkpoint import load_into, load_tensors, save_tensors, write_text
from sfumato.conditioning.condition import Conditioner, ConditionSpec
from sfumato.conditioning.table import ConditionerConfig, NoneConfig, build_conditioner, stored_tokenizer
from sfumato.config import load_config, to_yaml
from sfumato.errors import UserError
from sfumato.foreign import reading
from sfumato.model import TOKENIZER_FILE, LatentDiffusion
from sfumato.model_config import Side
from sfumato.model_folder import load, tokenizer_of
from sfumato.pipeline.conditions import ConditionInputs, ConditionSource, conditions_for
from sfumato.pipeline.latents import check_finite
from sfumato.pipeline.plan import notes_of, spread, warn_of
from sfumato.schema import Schema
from sfumato.stored_format import FORMAT
from sfumato.versions import CONFIG_FILE, newest_version, read_one_version, replacing_folder

FIRST_STAGE = "first-stage"
"""The folder of the VQ autoencoder, inside the model's."""


class CodeModelConfig(Schema):
    """`config.yaml` of a transformer's model folder."""

    format: Literal[2] = FORMAT
    transformer: CodeTransformerConfig
    conditioner: ConditionerConfig = NoneConfig()
    condition_dropout: float = Field(0.0, ge=0, le=1)
    image_size: tuple[Side, Side]
    classes: tuple[str, ...] | None = None
    about: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class CodeModel:
    """A model ready to sample. Created by `load_code_model` or by training."""

    config: CodeModelConfig
    first: LatentDiffusion
    network: CodeTransformer
    conditioner: Conditioner | None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.network.code_emb.weight.device

    def parts(self) -> dict[str, nn.Module]:
        """The modules by the name of their file, except the first stage."""
        parts: dict[str, nn.Module] = {"transformer": self.network}
        return parts if self.conditioner is None else {**parts, "conditioner": self.conditioner}

    def to(self, device: torch.device | str) -> Self:
        """Moves the weights and returns the model."""
        self.first.to(device)
        for part in self.parts().values():
            part.to(device)
        return self

    def save(self, folder: Path | str) -> None:
        """Writes the model folder; an existing one is replaced only once the new one is complete."""
        with replacing_folder(Path(folder)) as fresh:
            self.first.save(fresh / FIRST_STAGE)
            for name, part in self.parts().items():
                save_tensors(fresh / f"{name}.safetensors", part.state_dict())
            tokenizer = stored_tokenizer(self.conditioner)
            if tokenizer is not None:
                write_text(fresh / TOKENIZER_FILE, tokenizer)
            write_text(fresh / CONFIG_FILE, to_yaml(self.config))

    def sample_tensor(
        self,
        text: Sequence[str] | None = None,
        label: Sequence[int | str] | None = None,
        seeds: Sequence[int] = (0,),
        choice: Choice = Choice(),
        guidance: float = 1.0,
        callback: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1], one per seed, sampled in one batch.

        Args:
            text, label: one each, or one for all.
            guidance: scale on the logits; 1 is off.
            callback: called with the index of every generated position.

        Raises:
            UserError: for a condition that the model is not conditioned on, or lacks.
        """
        source = ConditionSource(
            self.conditioner,
            self.config.conditioner,
            self.config.condition_dropout,
            {},
            self.config.classes,
            None,
            self.device,
        )
        n = len(seeds)
        inputs = ConditionInputs(spread(text, n, "prompts"), spread(label, n, "labels"))
        warn_of(notes_of(source, inputs))
        made = conditions_for(source, n, self.network.size, inputs)
        if guidance != 1 and made.null is None:
            raise UserError(f"guidance {guidance:g} is not possible: this model was trained without condition dropout")
        codes = sample_codes(self.network, made.condition, made.null, seeds, choice, guidance, callback)
        with torch.no_grad():
            return check_finite(self.first.autoencoder.decode_indices(codes).float(), "decoder", "images")


def codebook_of(first: LatentDiffusion) -> int:
    """K of a VQ first stage. Raises UserError for another kind."""
    bottleneck = first.config.autoencoder.bottleneck
    if not isinstance(bottleneck, VQConfig):
        raise UserError(
            f"a transformer requires a VQ autoencoder, and this one's bottleneck.kind is {bottleneck.kind}: train one "
            "with vq, such as zoo:toy/vq-autoencoder"
        )
    return bottleneck.codes


def build_code_model(config: CodeModelConfig, first: LatentDiffusion, tokenizer: str | None = None) -> CodeModel:
    """With newly initialised weights. Raises UserError where the first stage has no codebook or the condition is
    spatial."""
    _, h, w = first.latent_shape_of(config.image_size)
    conditioner = build_conditioner(config.conditioner, tokenizer)
    spec = ConditionSpec() if conditioner is None else conditioner.spec
    return CodeModel(config, first, CodeTransformer(config.transformer, codebook_of(first), (h, w), spec), conditioner)


def is_code_model(path: Path) -> bool:
    """Whether the folder is that of a transformer over codes, or of its run."""
    return any((folder / "transformer.safetensors").exists() for folder in (path / "model", path))


def load_code_model(path: Path | str, device: torch.device | str = "cpu") -> CodeModel:
    """Opens a transformer's model folder, or that of its run, also while a training replaces it.

    Raises UserError naming what is missing.
    """
    return read_one_version(lambda: _find_folder(Path(path)), _load).to(device)


def _find_folder(path: Path) -> Path:
    """The transformer's folder at a path. Raises UserError if there is none."""
    folder = newest_version(path, ("transformer.safetensors", CONFIG_FILE))
    if folder is None:
        raise UserError(
            f"{str(path)!r} is not a transformer: give the run or model folder of `sfumato train transformer`"
        )
    return folder


def _load(folder: Path) -> CodeModel:
    """The model in a folder, on the CPU."""
    with reading(folder):
        config = load_config(str(folder / CONFIG_FILE), [], CodeModelConfig)
        tokenizer = tokenizer_of(folder, config.conditioner)
        model = build_code_model(config, load(folder / FIRST_STAGE), tokenizer)
        for name, module in model.parts().items():
            where = folder / f"{name}.safetensors"
            load_into(module, load_tensors(where)[0], str(where))
            module.eval().requires_grad_(False)
    return model
