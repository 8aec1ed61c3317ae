"""Text -> token ids: byte-level pairs fitted on the captions, or any tokenizer.json."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from sfumato.errors import UserError

Array = npt.NDArray[np.int32]

PAD, START, END = "[PAD]", "[CLS]", "[SEP]"
KEPT = 100_000
"""Texts whose ids are cached: captions repeat in every epoch, and tokenising a batch takes milliseconds."""
KEPT_CHARACTERS = 2**24
"""Of these texts together: a service is sent texts of any length."""


def fit_tokenizer(captions: Iterable[str], vocabulary: int = 8192) -> str:
    """A tokenizer for these captions, as the text of a tokenizer.json.

    Lower-cased byte-level pair encoding: frequent words become one token, rare and unseen ones are split, and since
    all 256 bytes are in the vocabulary no text is ever unknown. The result depends neither on the captions' order
    nor on the number of threads. `[PAD]` has the id 0; a text is framed by `[CLS]` and `[SEP]`.

    Raises:
        UserError: there is no caption, or the vocabulary cannot hold the 256 bytes and three special tokens.
    """
    texts = sorted(captions)
    if not any(text.strip() for text in texts):
        raise UserError("a tokenizer cannot be fitted on no captions; give captions, or name a tokenizer.json")
    if vocabulary < 256 + 3:
        raise UserError(f"vocabulary {vocabulary} is too small for 256 bytes and 3 special tokens; give at least 512")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[PAD, START, END],
            initial_alphabet=alphabet,
            min_frequency=1,
            show_progress=False,
        ),
    )
    frame = [(START, tokenizer.token_to_id(START)), (END, tokenizer.token_to_id(END))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=frame)
    text: str = tokenizer.to_str()
    return text


def parsed(json: str, name: str = "the tokenizer") -> Tokenizer:
    """The tokenizer of a tokenizer.json's text. Raises UserError, which begins with `name`, for any other text."""
    try:
        return Tokenizer.from_str(json)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{name} is not a tokenizer.json: {' '.join(str(error)[:200].split())}") from error


class Texts:
    """Tokenises lists of texts to a fixed length; `json` is the tokenizer.json it was made from.

    Each tokenizer of the library keeps words that it has seen, and they stay in memory when it is deleted: there are
    two for as long as this object is there, never one for each call.
    """

    def __init__(self, json: str, length: int, pad: int = 0) -> None:
        self.tokenizer = parsed(json)
        self.json = json
        self.length = length
        self.pad = pad
        self.size: int = self.tokenizer.get_vocab_size()
        self.largest: int = max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self._whole: Tokenizer | None = None
        self._known: dict[str, Array] = {}
        self._characters = 0
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(length)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids (B, length) long, cut or padded."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for text, encoding in zip(new, self.tokenizer.encode_batch(new), strict=True):
            self._known[text] = np.array(encoding.ids + [self.pad] * (self.length - len(encoding.ids)), np.int32)
            self._characters += len(text)
        rows = [self._known[text] for text in texts]
        if len(self._known) > KEPT or self._characters > KEPT_CHARACTERS:
            self._known.clear()
            self._characters = 0
        ids = np.stack(rows) if rows else np.empty((0, self.length), np.int32)
        return torch.from_numpy(ids.astype(np.int64))

    def counts(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text before it is cut to the length, frame included."""
        if self._whole is None:
            whole = Tokenizer.from_str(self.json)
            whole.no_padding()
            whole.no_truncation()
            self._whole = whole
        return [len(encoding.ids) for encoding in self._whole.encode_batch(list(texts))]
