"""The toy world as a dataset: images rendered on the fly, nothing on disk."""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import torch

from sfumato.data.dataset import Example
from sfumato.data.toyworld.caption import caption
from sfumato.data.toyworld.render import boxes, height_width, render, semantic_maps
from sfumato.data.toyworld.scene import CLASSES, FULL, Scene, Split, scene
from sfumato.data.toyworld.vocabulary import Vocabulary
from sfumato.errors import UserError
from sfumato.schema import Schema

FIELDS: tuple[str, ...] = ("text", "label", "map", "boxes")
# Increased whenever the same configuration would give different images or captions.
_EDITION = 1
_CAPTION_SAMPLE = 4096


class ToyWorldConfig(Schema):
    """A toy world: `size` is H = W or (H, W), at least 32; `fields` are what an example carries beside the image."""

    kind: Literal["toy"] = "toy"
    size: int | tuple[int, int] = 64
    length: int = 100_000
    seed: int = 0
    split: Split = "train"
    fields: tuple[Literal["text", "label", "map", "boxes"], ...] = ("text", "label")
    vocabulary: Vocabulary = FULL

    def build(self) -> "ToyWorld":
        """The dataset of this configuration."""
        return ToyWorld(self.size, self.seed, self.split, self.length, self.fields, self.vocabulary)


class ToyWorld:
    """Captioned scenes by index. Fields of an example:

    - `text`: the caption; `label`: class index into `classes` (texture and shape of the first-named object)
    - `map`: uint8 (H, W), indices into `render.MAP_NAMES`; `boxes`: [(index into it, x0, y0, x1, y1 in [0, 1])]

    Raises UserError for an unusable size, length, split or field.

    Example:
        >>> world = sfumato.ToyWorld(size=32, length=100)
        >>> world[0].image.shape, sorted(world[0].fields)
        (torch.Size([3, 32, 32]), ['label', 'text'])
    """

    classes: tuple[str, ...] | None = CLASSES

    def __init__(
        self,
        size: int | tuple[int, int] = 64,
        seed: int = 0,
        split: Split = "train",
        length: int = 100_000,
        fields: Sequence[str] = ("text", "label"),
        vocabulary: Vocabulary = FULL,
    ) -> None:
        if length < 1:
            raise UserError(f"length {length} of the toy world must be at least 1")
        if unknown := [name for name in fields if name not in FIELDS]:
            raise UserError(f"field {unknown[0]!r} is not one of {', '.join(FIELDS)}")
        self.size = height_width(size)
        self.seed = seed
        self.split: Split = split
        self.fields: tuple[str, ...] = tuple(fields)
        self.vocabulary = vocabulary
        self._length = length
        self.scene(0)  # raises for an unusable split or vocabulary

    def __len__(self) -> int:
        return self._length

    def scene(self, index: int) -> Scene:
        """The scene behind an example; raises IndexError outside the length."""
        if not -self._length <= index < self._length:
            raise IndexError(f"scene {index} of a toy world of length {self._length}")
        return scene(self.seed, index % self._length, self.split, self.vocabulary)

    def __getitem__(self, index: int) -> Example:
        return self.examples([index])[0]

    def examples(self, indices: Sequence[int]) -> list[Example]:
        """Several examples, rendered together: about twice as fast as one by one."""
        scenes = [self.scene(index) for index in indices]
        images = render(scenes, self.size)
        maps = semantic_maps(scenes, self.size) if "map" in self.fields else torch.empty(len(scenes), 0)
        examples = []
        for item, image, semantic_map in zip(scenes, images, maps, strict=True):
            fields: dict[str, Any] = {}
            for name in self.fields:
                if name == "text":
                    fields[name] = caption(item)
                elif name == "label":
                    fields[name] = item.label
                elif name == "map":
                    fields[name] = semantic_map.clone()
                else:
                    fields[name] = boxes(item, self.size)
            examples.append(Example(image.clone(), fields))
        return examples

    def fingerprint(self) -> str:
        """A hash of the content: equal for equal worlds on every machine."""
        facts = (
            _EDITION,
            self.size,
            self.seed,
            self.split,
            self._length,
            self.fields,
            self.vocabulary.model_dump_json(),
        )
        return "toy-" + hashlib.blake2b(repr(facts).encode(), digest_size=12).hexdigest()

    def captions(self) -> list[str] | None:
        """Captions for building a vocabulary: the first few thousand, which contain every word of this world."""
        return [caption(self.scene(index)) for index in range(min(self._length, _CAPTION_SAMPLE))]
