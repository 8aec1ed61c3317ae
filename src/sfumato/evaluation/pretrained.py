"""DINOv2 and CLIP as feature networks, through the library transformers, and the CLIP score of images and texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.conditioning.sources import LOCAL, check_runs_no_code, model_folder, weights_hash
from sfumato.documents import read_json_object
from sfumato.errors import UserError
from sfumato.evaluation.features import FeatureNetwork, Features, MapNetwork
from sfumato.evaluation.resize import ResizeFilter

DINOV2, CLIP = "dinov2", "clip"
DINOV2_SOURCE = "facebook/dinov2-large"
"""The model that Stein et al. 2023 (FD-DINOv2) use."""
CLIP_SOURCE = "openai/clip-vit-base-patch32"
_SIDE = 224


class Normalised(MapNetwork):
    """A transformers vision model on images in [-1, 1], with the means and deviations it was trained with."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(list(mean))[:, None, None])
        self.register_buffer("std", torch.tensor(list(std))[:, None, None])
        self.requires_grad_(False).eval()

    def pixels(self, images: Tensor) -> Tensor:
        """The model's input for images (B, 3, H, W) in [-1, 1]."""
        return ((images + 1) / 2 - self.mean) / self.std


def as_map(tokens: Tensor, images: Tensor) -> Tensor:
    """The patches' tokens (B, 1 + N, D) after the class token, as a map (B, D, h', w') of the images' proportions."""
    patches = tokens[:, 1:]
    H, W = images.shape[-2:]
    rows = round((patches.shape[1] * H / W) ** 0.5)
    return patches.transpose(1, 2).unflatten(2, (rows, -1))


class DINOv2Features(Normalised):
    """The class token after the last norm (Oquab et al. 2023)."""

    def maps(self, images: Tensor) -> Tensor:
        """The patches' tokens after the last norm."""
        return as_map(self.model(pixel_values=self.pixels(images)).last_hidden_state, images)

    def forward(self, images: Tensor) -> Features:
        """(B, 3, h, w) in [-1, 1]."""
        out: Any = self.model(pixel_values=self.pixels(images))
        return Features(out.last_hidden_state[:, 0])


class CLIPFeatures(Normalised):
    """The projected image embedding (Radford et al. 2021), not normalised."""

    def maps(self, images: Tensor) -> Tensor:
        """The patches' tokens of the last layer."""
        vision: Any = self.model.vision_model
        return as_map(vision(pixel_values=self.pixels(images)).last_hidden_state, images)

    def forward(self, images: Tensor) -> Features:
        """(B, 3, h, w) in [-1, 1]."""
        return Features(_embedding(self.model.get_image_features(pixel_values=self.pixels(images))))  # type: ignore[operator]


def _embedding(found: Any) -> Tensor:
    """The projected embedding, which newer versions of transformers wrap in an output."""
    embedding: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return embedding


def load_dinov2(
    source: str = DINOV2_SOURCE, sha256: str | None = None, resize_filter: ResizeFilter = "bicubic"
) -> FeatureNetwork:
    """DINOv2 from a folder in the transformers layout, `package:NAME`, or a hub name.

    Raises UserError if it cannot be found, is another kind of model, or has other weights than `sha256`.
    """
    model, folder, found = _load("Dinov2Model", "dinov2", source, sha256)
    network, dim = DINOv2Features(model, *_moments(folder)), int(model.config.hidden_size)
    return FeatureNetwork(_named(DINOV2, source, DINOV2_SOURCE), network, dim, (_SIDE, _SIDE), resize_filter, found)


def load_clip(
    source: str = CLIP_SOURCE, sha256: str | None = None, resize_filter: ResizeFilter = "bicubic"
) -> FeatureNetwork:
    """CLIP's image encoder; source and errors as `load_dinov2`."""
    model, folder, found = _load("CLIPModel", "clip", source, sha256)
    side = int(model.config.vision_config.image_size)
    network = CLIPFeatures(model, *_moments(folder))
    dim = int(model.config.projection_dim)
    return FeatureNetwork(_named(CLIP, source, CLIP_SOURCE), network, dim, (side, side), resize_filter, found)


def _named(kind: str, source: str, usual: str) -> str:
    """The kind, and the model's name if it is not the usual one."""
    return kind if source == usual else f"{kind}:{Path(source).name}"


def _load(loader: str, kind: str, source: str, sha256: str | None) -> tuple[Any, Path, str]:
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"the features of {kind} need the extra: pip install 'sfumato[text]'") from error
    folder = model_folder(source)
    check_runs_no_code(folder, transformers.CONFIG_MAPPING)
    is_kind = transformers.AutoConfig.from_pretrained(folder, **LOCAL).model_type
    if is_kind != kind:
        raise UserError(f"{source} is a model of the kind {is_kind}, not {kind}")
    found = weights_hash(folder)
    if sha256 is not None and not found.startswith(sha256.lower()):
        raise UserError(f"the weights of {source} have the sha256 {found}, not {sha256}")
    return (
        getattr(transformers, loader).from_pretrained(folder, **LOCAL),
        folder,
        found,
    )


def _moments(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation of the pixels in [0, 1] by the model's preprocessor_config.json; UserError without one."""
    file = folder / "preprocessor_config.json"
    found = read_json_object(file)
    mean, std = (_three_numbers(found.get(name)) for name in ("image_mean", "image_std"))
    if mean is None or std is None or not all(value > 0 for value in std):
        raise UserError(
            f"{str(file)!r} does not give image_mean and image_std as three numbers each, which the network needs"
        )
    return mean, std


def _three_numbers(value: Any) -> list[float] | None:
    if not isinstance(value, list) or len(value) != 3 or not all(type(part) in (int, float) for part in value):
        return None
    return [float(part) for part in value]


# ---- CLIP score


@dataclass(frozen=True)
class ClipScore:
    """Agreement of images with their texts: 100 · max(cosine, 0) each (Hessel et al. 2021, but for the factor)."""

    images: FeatureNetwork
    tokenizer: Any

    @classmethod
    def of(cls, network: FeatureNetwork, source: str = CLIP_SOURCE) -> "ClipScore":
        """With the image encoder from `load_clip`, and the tokenizer of the same source."""
        import transformers

        folder = model_folder(source)
        return cls(network, transformers.AutoTokenizer.from_pretrained(folder, **LOCAL))

    def __call__(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        """(B,) float64, for pooled image features (B, D) and B texts; ValueError for another number."""
        if len(features) != len(texts):
            raise ValueError(f"{len(features)} images and {len(texts)} texts")
        model: Any = self.images.network.model
        limit = int(model.config.text_config.max_position_embeddings)
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        device = next(self.images.network.parameters()).device
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            text_features = _embedding(model.get_text_features(**tokens.to(device))).double().cpu()
        return 100 * F.cosine_similarity(features.double(), text_features, dim=1).clamp_min(0)
