"""Guides of sampling that are opened with the model: a classifier, a weaker model, other images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli.flags import flag, like
from sfumato.cli.forms import request_flag
from sfumato.pipeline.request import ClassifierGuidance, ImageGuidance

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sfumato.model import LatentDiffusion


@dataclass(frozen=True, kw_only=True)
class GuideFlags:
    """The options of guidance that name files."""

    classifier: Path | None = request_flag(
        "classifier", type=Path, metavar="RUN", hint="A run of `sfumato train classifier`; with --class."
    )
    class_: str | None = flag(
        None,
        "guidance",
        "The class, by name or number, that --classifier guides towards.",
        names=("--class",),
        metavar="N",
    )
    classifier_scale: float = like(ClassifierGuidance, "scale", metavar="S")
    autoguide: Path | None = request_flag(
        "autoguide", type=Path, metavar="MODEL", hint="A model, a run with snapshots, or the file of a snapshot."
    )
    image_guidance: list[str] | None = request_flag(
        "image_guidance",
        type=list[str],
        metavar="KIND=FILE",
        hint="low-res=FILE, colour=FILE or colour=#rrggbb, features=FILE. May be given several times.",
    )
    image_guidance_scale: float = like(ImageGuidance, "scale", metavar="S")

    def facts(self) -> dict[str, Any]:
        """The guide's record in images, beside the request's own."""
        facts = {} if self.class_ is None else {"class": self.class_}
        return facts if not self.image_guidance else {**facts, "image guidance": "; ".join(self.image_guidance)}


def opened_guides(
    flags: GuideFlags, model: "LatentDiffusion", size: tuple[int, int], device: "torch.device"
) -> dict[str, Any]:
    """The options of a request that guide images of size (H, W). To be called before the model is packed.

    Raises UserError for options that do not go together, or with the model.
    """
    return {
        "autoguide": weaker_of(flags.autoguide, device),
        "image_guidance": image_guidance_of(flags.image_guidance or (), flags.image_guidance_scale, size),
        "classifier": classifier_guidance_of(flags.classifier, flags.class_, flags.classifier_scale, model),
    }


def classifier_guidance_of(
    classifier: Path | None, label: str | None, scale: float, model: "LatentDiffusion"
) -> ClassifierGuidance | None:
    """The guidance by a classifier of noisy latents to a class; none without a classifier."""
    from sfumato.classifier import load_classifier
    from sfumato.errors import UserError

    if (classifier is None) != (label is None):
        missing = "--classifier, a run of `sfumato train classifier`" if classifier is None else "--class"
        raise UserError(f"--class and --classifier go together: give {missing} too")
    if classifier is None or label is None:
        return None
    opened = load_classifier(classifier, model.device)
    opened.check_fits(model)
    return opened.guide(label, scale)


def weaker_of(path: Path | None, device: "torch.device") -> "LatentDiffusion | None":
    """The model that --autoguide guides away from: a run's early snapshot where it has some, the snapshot of a file."""
    from sfumato.model_folder import load
    from sfumato.training.averages.snapshots import FOLDER, load_snapshot

    if path is None:
        return None
    return load_snapshot(path, device=device) if path.is_file() or (path / FOLDER).is_dir() else load(path, device)


def image_guidance_of(targets: Sequence[str], scale: float, size: tuple[int, int]) -> ImageGuidance | None:
    """The image guidance to targets such as colour=FILE. Raises UserError for anything else."""
    from sfumato.sampling.image_losses import Together

    if not targets:
        return None
    return ImageGuidance(Together(tuple(_loss(target, size) for target in targets)), scale)


def _loss(target: str, size: tuple[int, int]) -> Any:
    from sfumato.autoencoder.perceptual import EfficientNetFeatures, as_colour, unit_normalise
    from sfumato.errors import UserError
    from sfumato.sampling.image_losses import Colour, FeatureMatch, LowResolution

    kind, equals, value = target.partition("=")
    if kind not in ("low-res", "colour", "features") or not equals or not value:
        raise UserError(
            f"--image-guidance {target!r} is not low-res=IMAGE, colour=IMAGE, colour=#rrggbb or features=IMAGE"
        )
    if kind == "low-res":
        return LowResolution(_low_resolution(Path(value), size))
    if kind == "colour":
        if Path(value).is_file():
            return Colour.of(image_of(Path(value), None, "--image-guidance:"))
        return Colour(_named_colour(value))
    network = EfficientNetFeatures()
    image = image_of(Path(value), size, "--image-guidance:")[None]
    return FeatureMatch(lambda images: [unit_normalise(f) for f in network.net(as_colour(images))], image)


def _named_colour(name: str) -> "Tensor":
    import torch
    from PIL import ImageColor

    from sfumato.errors import UserError
    from sfumato.images import to_unit

    try:
        rgb = ImageColor.getcolor(name, "RGB")
    except ValueError:
        raise UserError(
            f"--image-guidance colour={name}: this is neither an image nor a colour such as red or #b03060"
        ) from None
    return to_unit(torch.tensor(rgb))


def _low_resolution(path: Path, size: tuple[int, int]) -> "Tensor":
    """(1, 3, h, w): a file smaller than the image at its own size, cropped to its shape; else an eighth of it."""
    import torch.nn.functional as F

    H, W = size
    _, height, width = image_of(path, None, "--image-guidance:").shape
    if height < H and width < W:
        factor = max(H / height, W / width)
        return image_of(path, (max(1, round(H / factor)), max(1, round(W / factor))), "--image-guidance:")[None]
    return F.adaptive_avg_pool2d(image_of(path, size, "--image-guidance:")[None], (max(2, H // 8), max(2, W // 8)))


def image_of(path: Path, size: tuple[int, int] | None, name: str) -> "Tensor":
    """A file as (3, H, W) in [-1, 1], cropped to the size. Raises UserError, with the name, where it is unreadable."""
    import torch

    from sfumato.cli.options import refused
    from sfumato.data.reading import decode
    from sfumato.data.transforms import Framing
    from sfumato.images import from_pil, to_unit

    with refused(path, name):
        image = decode(path, (255, 255, 255))
    if size is None:
        return from_pil(image)
    return to_unit(torch.from_numpy(Framing(size).prepare(image)))
