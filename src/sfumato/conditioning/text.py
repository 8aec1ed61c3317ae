"""Text -> tokens, through a transformer trained together with the denoiser (§4.3.1 of the paper)."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from sfumato.conditioning.condition import Condition, Conditioner, ConditionSpec, Fields
from sfumato.conditioning.encoder import Initial, OnDevices, TokenEncoder, device_of
from sfumato.conditioning.tokenizer import Texts
from sfumato.errors import UserError
from sfumato.schema import Schema


class TextConfig(Schema):
    """Width and depth of the text transformer, and the source of its tokenizer."""

    kind: Literal["text"] = "text"
    dim: int = Field(default=256, gt=0, le=65536)
    depth: int = Field(
        default=4, gt=0, le=256, description="pairs of attention and feed-forward (the original's n_layer)"
    )
    heads: int = Field(default=8, gt=0, le=1024)
    head_dim: int = Field(default=64, gt=0, le=65536)
    max_tokens: int = Field(default=77, gt=1, le=65536, description="longer texts are cut, shorter ones padded")
    tokenizer: str = Field(
        default="fitted",
        description="fitted: on the training captions; a tokenizer.json, its folder, or package:NAME; none: ids only",
    )
    vocabulary: int = Field(
        default=8192,
        gt=0,
        le=10_000_000,
        description="largest size of a fitted tokenizer; rows of the token table with another",
    )
    mask_padding: bool = Field(default=True, description="padding is not attended; the original attended it")
    pad_token: int = Field(default=0, ge=0)
    empty_tokens: tuple[int, ...] = Field(
        default=(101, 102), description="ids of the empty text if there is no tokenizer (BERT's `[CLS]`, `[SEP]`)"
    )
    pooled: bool = Field(
        default=False,
        description="also condition through the time embedding, by the mean of the real tokens; speeds up small models",
    )
    initial: Initial = Field(
        default="sinusoidal",
        description="tables of tokens and positions before training; sinusoidal learns word order sooner",
    )
    logits: bool = Field(
        default=False, description="include the original's unused output layer, to fit its checkpoints"
    )


class TextTransformer(Conditioner):
    """Reads `text`, B strings, or instead `tokens`, (B, M) padded ids; the unconditional one is the empty text.

    Args:
        config: the topology.
        tokenizer: text of a tokenizer.json; available as `tokenizer_json` for saving the model. None: ids only.

    Raises:
        UserError: the tokenizer is fitted elsewhere but not given, or has more entries than the token table rows.
    """

    reads = ("text",)

    def __init__(self, config: TextConfig, tokenizer: str | None = None) -> None:
        super().__init__()
        self.config = config
        self.texts = None if tokenizer is None else Texts(tokenizer, config.max_tokens, config.pad_token)
        if self.texts is None and config.tokenizer == "fitted":
            raise UserError("the text conditioner's tokenizer is 'fitted' but none is given; fit one on the captions")
        if self.texts is not None and config.tokenizer != "fitted" and self.texts.size > config.vocabulary:
            raise UserError(
                f"vocabulary {config.vocabulary} is smaller than the {self.texts.size} entries of the tokenizer "
                f"{config.tokenizer}; set vocabulary: {self.texts.size}"
            )
        fitted = self.texts is not None and config.tokenizer == "fitted"
        rows = self.texts.size if fitted and self.texts is not None else config.vocabulary
        self._check_ids(rows)
        self.transformer = TokenEncoder(
            rows,
            config.dim,
            config.depth,
            config.heads,
            config.head_dim,
            config.max_tokens,
            config.logits,
            config.initial,
        )
        self.spec = ConditionSpec(token_dim=config.dim, vector_dim=config.dim if config.pooled else None)
        self._empty = OnDevices(self.empty_ids)

    def _check_ids(self, rows: int) -> None:
        """Raises UserError if a token id has no row in the table, which would otherwise fail when a text is encoded."""
        own = self.config.empty_tokens if self.texts is None else ()
        largest = -1 if self.texts is None else self.texts.largest
        if largest >= rows:
            raise UserError(f"the tokenizer has the token id {largest}, but the table of tokens only {rows} rows")
        for name, ids in (("pad_token", (self.config.pad_token,)), ("empty_tokens", own)):
            outside = [number for number in ids if not 0 <= number < rows]
            if outside:
                raise UserError(f"{name} holds {outside[0]}, but the table of tokens has the ids 0 to {rows - 1}")
        if len(own) > self.config.max_tokens:
            raise UserError(f"empty_tokens has {len(own)} ids, more than max_tokens {self.config.max_tokens}")

    @property
    def tokenizer_json(self) -> str | None:
        return None if self.texts is None else self.texts.json

    def prepare(self, fields: Fields) -> dict[str, Any]:
        """`tokens`, checked."""
        ids = self.tokenise(fields["text"]) if fields.get("tokens") is None else fields["tokens"]
        self.transformer.check(ids)
        return {"tokens": ids}

    def forward(self, fields: Fields) -> Condition:
        """tokens (B, M, dim), with the mask of real tokens if padding is masked; ValueError for ids out of range."""
        return self._encode(self.prepare(fields)["tokens"])

    def null(self, n: int, size: tuple[int, int]) -> Condition:
        """The empty text, encoded once."""
        one = self._encode(self._empty(device_of(self)))
        return Condition(**{name: value.expand(n, *value.shape[1:]) for name, value in one.tensors().items()})

    def empty_ids(self) -> Tensor:
        """Ids (1, max_tokens) of the empty text, the unconditional one."""
        if self.texts is not None:
            return self.texts([""])
        ids = torch.full((1, self.config.max_tokens), self.config.pad_token)
        ids[0, : len(self.config.empty_tokens)] = torch.tensor(self.config.empty_tokens)
        return ids

    def tokenise(self, texts: Sequence[str]) -> Tensor:
        """Ids (B, max_tokens). Raises UserError where there is no tokenizer."""
        if self.texts is None:
            raise UserError("this text conditioner has no tokenizer (tokenizer: none); give token ids in `tokens`")
        return self.texts(texts)

    def _encode(self, ids: Tensor) -> Condition:
        ids = ids.to(device_of(self), torch.long)
        mask = real_tokens(ids, self.config.pad_token) if self.config.mask_padding else None
        tokens = self.transformer(ids, mask)
        if not self.config.pooled:
            return Condition(tokens=tokens, mask=mask)
        real = real_tokens(ids, self.config.pad_token)[:, :, None].to(tokens.dtype)
        return Condition(vector=(tokens * real).sum(1) / real.sum(1), tokens=tokens, mask=mask)


def real_tokens(ids: Tensor, pad: int) -> Tensor:
    """(B, M) bool, False at padding; the first position is always True, so that every row attends to something."""
    mask = ids != pad
    mask[:, 0] = True
    return mask
