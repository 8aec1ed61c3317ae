"""Text -> tokens, through a frozen pretrained encoder (BERT, CLIP, T5, ...) of the library transformers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.conditioning.condition import Condition, Conditioner, ConditionSpec, Fields
from sfumato.conditioning.encoder import device_of
from sfumato.conditioning.sources import LOCAL, check_runs_no_code, model_folder, weights_hash
from sfumato.errors import UserError
from sfumato.foreign import reading
from sfumato.schema import Schema


class PretrainedTextConfig(Schema):
    """The encoder and the layer to use."""

    kind: Literal["pretrained-text"] = "pretrained-text"
    source: str = Field(description="a folder, package:NAME, or a hub name")
    revision: str | None = Field(default=None, description="commit or tag of a hub name")
    tokenizer: str | None = Field(default=None, description="where the tokenizer is, if not beside the encoder")
    layer: Literal["last", "penultimate"] = Field(
        default="last", description="penultimate: the last but one, through the final norm (Stable Diffusion 2)"
    )
    max_tokens: int = Field(default=77, gt=1, le=65536)
    mask_padding: bool = Field(default=True, description="Stable Diffusion 1 and 2 attend padding: false")
    sha256: str | None = Field(default=None, description="refuse other weights than these")


class PretrainedText(Conditioner):
    """Reads `text`, B strings; unconditional is the empty text.

    The encoder is not a submodule: its weights belong to its source, so they appear neither among the parameters nor
    in the state dict. It follows `.to(...)`, stays in evaluation mode, and gets no gradients.

    Args:
        config: layer and length; the source is only recorded.
        encoder: a transformers model that returns `last_hidden_state` and `hidden_states`.
        tokenizer: a transformers tokenizer.
        sha256: hash of the encoder's weight files, kept in `provenance`.
    """

    reads = ("text",)
    encoder: nn.Module

    def __init__(self, config: PretrainedTextConfig, encoder: nn.Module, tokenizer: Any, sha256: str = "") -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.provenance = {"source": config.source, "sha256": sha256}
        self.__dict__["encoder"] = encoder.eval().requires_grad_(False)
        description: Any = encoder.config
        longest = getattr(description, "max_position_embeddings", None)
        if longest is not None and config.max_tokens > longest:
            raise UserError(
                f"max_tokens {config.max_tokens} exceeds the {longest} positions of {config.source}; "
                f"set max_tokens: {longest} or less"
            )
        self.spec = ConditionSpec(token_dim=int(description.hidden_size))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.encoder._apply(fn)
        super()._apply(fn, recurse)
        return self

    @torch.no_grad()
    def forward(self, fields: Fields) -> Condition:
        """tokens (B, max_tokens, D), with the mask of real tokens if padding is masked.

        Instead of `text` it accepts what `tokenise` returns.
        """
        batch = fields if "input_ids" in fields else self.tokenise(list(fields["text"]))
        device = device_of(self.encoder)
        ids = batch["input_ids"].to(device)
        if not self.config.mask_padding:
            return Condition(tokens=self._encode(ids, None))
        mask = batch["attention_mask"].to(device)
        return Condition(tokens=self._encode(ids, mask), mask=mask.bool())

    def tokenise(self, texts: list[str]) -> Mapping[str, Tensor]:
        """`input_ids` and `attention_mask` of the texts, (B, max_tokens) long, truncated or padded."""
        batch: Mapping[str, Tensor] = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.config.max_tokens, return_tensors="pt"
        )
        return batch

    def null(self, n: int, size: tuple[int, int]) -> Condition:
        """The empty text, encoded once."""
        one = self.forward({"text": [""]})
        return Condition(**{name: value.expand(n, *value.shape[1:]) for name, value in one.tensors().items()})

    def _encode(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        penultimate = self.config.layer == "penultimate"
        out: Any = self.encoder(input_ids=ids, attention_mask=mask, output_hidden_states=penultimate)
        tokens: Tensor = self._final_norm()(out.hidden_states[-2]) if penultimate else out.last_hidden_state
        return tokens

    def _final_norm(self) -> nn.Module:
        """CLIP's norm after the last layer (its place differs between versions); other encoders have none."""
        inner = getattr(self.encoder, "text_model", self.encoder)
        norm: nn.Module = getattr(inner, "final_layer_norm", nn.Identity())
        return norm


def load_pretrained_text(config: PretrainedTextConfig) -> PretrainedText:
    """Loads encoder and tokenizer from the configured source.

    Raises:
        UserError: transformers is not installed, the source cannot be found, or its weights are not the expected ones.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError("a pretrained text encoder needs the extra: pip install 'sfumato[text]'") from error
    folder = model_folder(config.source, config.revision)
    sha256 = weights_hash(folder)
    if config.sha256 is not None and config.sha256 != sha256:
        raise UserError(f"the weights of {config.source} have the sha256 {sha256}, not {config.sha256} as configured")
    words = folder if config.tokenizer is None else model_folder(config.tokenizer)
    for place in dict.fromkeys((folder, words)):
        check_runs_no_code(place, transformers.CONFIG_MAPPING)
    with reading(folder):
        encoder = _encoder(transformers, folder)
    with reading(words):
        tokenizer = transformers.AutoTokenizer.from_pretrained(words, **LOCAL)
    return PretrainedText(config, encoder, tokenizer, sha256)


def _encoder(transformers: Any, folder: Path) -> nn.Module:
    kind = transformers.AutoConfig.from_pretrained(folder, **LOCAL).model_type
    towers = {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel", "t5": "T5EncoderModel"}
    loader = getattr(transformers, towers.get(kind, "AutoModel"))
    with torch.device("cpu"):  # its weights are loaded even if the model around it is built on the meta device
        encoder: nn.Module = loader.from_pretrained(folder, **LOCAL)
    return encoder
