"""The facts about a folder of images and a machine that a plan needs; plain numbers, so that plans can be tested."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ConditionerKind = Literal["text", "class", "semantic", "layout", "none"]


@dataclass(frozen=True)
class DataFacts:
    """A folder of images.

    Attributes:
        images: readable ones.
        side: the shorter side in pixels that three in four images have at least.
        captioned: images with a caption.
        captions: different captions.
        caption_tokens: tokens that 99 in 100 captions have at most, start and end included.
        classes: images by the name of their class; empty without labels.
        maps: whether the folder has label maps.
        boxes: whether the images have boxes.
        sided: a word or a class that speaks of left and right, or whose images change their meaning when mirrored.
        cropped: share of an image that squares cut off, on average.
        listed: images in the folder, where only some of them were read for these numbers; else as `images`.
    """

    images: int
    side: int
    captioned: int = 0
    captions: int = 0
    caption_tokens: int = 0
    classes: Mapping[str, int] = field(default_factory=dict)
    maps: bool = False
    boxes: bool = False
    sided: str | None = None
    cropped: float = 0.0
    listed: int | None = None

    @property
    def total(self) -> int:
        """Images in the folder."""
        return max(self.images, self.listed or 0)


@dataclass(frozen=True)
class Pace:
    """The measured cost of training one network on one image.

    Attributes:
        seconds: of a training step, divided by its images.
        operations: estimated floating-point operations of one image, forward and backward, see `networks`.
        parameters: trained ones.
        peak: bytes of memory that the process had in use at most.
    """

    seconds: float
    operations: float
    parameters: int = 0
    peak: int = 0


@dataclass(frozen=True)
class MachineFacts:
    """A machine, as far as it was measured.

    Attributes:
        name: of the processor or GPU.
        device: "cpu" or "cuda".
        cores: that this process may use.
        memory: bytes that are free for the training.
        read_seconds: of reading and resizing one image of the folder.
        first, second: pace of networks of stage 1 and stage 2 by the key of what was measured.
        reduced: whether bfloat16 is used.
        features: whether the feature network of the perceptual loss is installed.
        threads: that compute, 0 where it is not known; `threads_fixed`: by the user, else a training changes them when
            the machine does.
    """

    name: str
    device: Literal["cpu", "cuda"]
    cores: int
    memory: int
    read_seconds: float = 0.002
    first: Mapping[str, Pace] = field(default_factory=dict)
    second: Mapping[str, Pace] = field(default_factory=dict)
    reduced: bool = False
    features: bool = True
    threads: int = 0
    threads_fixed: bool = True

    def seconds(self, stage: Literal["first", "second"], key: str, operations: float) -> float:
        """Seconds of training a network on one image: as measured, else by the operations of the nearest measured one.

        Raises ValueError if no network of the stage was measured.
        """
        known = self.first if stage == "first" else self.second
        if key in known:
            return known[key].seconds
        if not known:
            raise ValueError(f"no network of the {stage} stage was measured")
        near = min(known.values(), key=lambda one: abs(one.operations / operations - 1))
        return near.seconds * operations / near.operations
