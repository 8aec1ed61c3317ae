"""The paper's models as a list for users: the task of `zoo:ldm/NAME`, its data, and the score of the published model.

Scores are those of the authors' repository; parameters are those of the trained network (autoencoder or U-Net).
"""

from dataclasses import dataclass
from typing import Literal

Origin = Literal["published", "ablation"]


@dataclass(frozen=True)
class Published:
    """One row. parameters: millions. first_stage: the zoo's, for a diffusion model. scale: its latent's factor; None:
    the reciprocal of the first batch's standard deviation."""

    name: str
    task: str
    factor: int
    regulariser: str
    parameters: float
    score: str
    needs: str
    first_stage: str | None = None
    scale: float | None = 1.0
    origin: Origin = "published"

    @property
    def config(self) -> str:
        """The argument for `sfumato train`."""
        return f"zoo:ldm/{self.name}"


_IMAGES = "a folder of images"
_CLASSES = "a folder of images by class"
_TEXT = "images with captions"


def _first(name: str, f: int, regulariser: str, millions: float, score: str, origin: Origin = "published") -> Published:
    return Published(name, "autoencoder", f, regulariser, millions, score, _IMAGES, origin=origin)


FIRST_STAGES = (
    _first("kl-f4", 4, "KL, 3 channels", 55.3, "rFID 0.27, PSNR 27.53"),
    _first("kl-f8", 8, "KL, 4 channels", 83.7, "rFID 0.90, PSNR 24.19"),
    _first("kl-f16", 16, "KL, 16 channels", 69.6, "rFID 0.87, PSNR 24.08"),
    _first("kl-f32", 32, "KL, 64 channels", 103.9, "rFID 2.04, PSNR 22.27"),
    _first("vq-f4", 4, "VQ 8192, 3 channels", 55.3, "rFID 0.58, PSNR 27.43"),
    _first("vq-f4-noattn", 4, "VQ 8192, 3 channels", 53.2, "rFID 1.06, PSNR 25.21"),
    _first("vq-f8", 8, "VQ 16384, 4 channels", 67.7, "rFID 1.14, PSNR 23.07"),
    _first("vq-f8-n256", 8, "VQ 256, 4 channels", 67.7, "rFID 1.49, PSNR 22.35"),
    _first("vq-f16", 16, "VQ 16384, 8 channels", 69.6, "rFID 5.15, PSNR 20.83"),
    _first("vq-f2", 2, "VQ 2048, 2 channels", 13.3, "not published", "ablation"),
    _first("vq-f32", 32, "VQ 16384, 32 channels", 103.8, "not published", "ablation"),
)
_BY_NAME = {row.name: row for row in FIRST_STAGES}


def _second(
    name: str,
    task: str,
    first_stage: str | None,
    millions: float,
    score: str,
    needs: str = _IMAGES,
    scale: float | None = 1.0,
    origin: Origin = "published",
) -> Published:
    first = None if first_stage is None else _BY_NAME[first_stage]
    factor, regulariser = (1, "none") if first is None else (first.factor, first.regulariser)
    return Published(name, task, factor, regulariser, millions, score, needs, first_stage, scale, origin)


DIFFUSIONS = (
    _second("celebahq256", "unconditional", "vq-f4", 274.1, "FID 5.11 (200 steps, eta 0)"),
    _second("ffhq256", "unconditional", "vq-f4", 274.1, "FID 4.98 (200 steps, eta 1)"),
    _second("lsun-churches256", "unconditional", "kl-f8", 295.0, "FID 4.02 (400 steps, eta 0)", scale=None),
    _second("lsun-bedrooms256", "unconditional", "vq-f4", 274.1, "FID 2.95 (200 steps, eta 1)"),
    _second("cin256", "class to image", "vq-f8", 395.0, "FID 15.82 (200 steps, eta 1)", _CLASSES),
    _second("cin256-v2", "class to image", "vq-f4", 400.9, "FID 3.6 (guided)", _CLASSES),
    _second("text2img256", "text to image", "vq-f4", 403.6, "FID 16.79 on CC (100 steps, eta 0)", _TEXT),
    _second("txt2img-1p4B", "text to image", "kl-f8", 872.3, "not published", _TEXT, 0.18215),
    _second("layout2img-openimages256", "boxes to image", "vq-f4", 246.3, "FID 32.02 (200 steps, eta 0)", "boxes"),
    _second("semantic-synthesis256", "label map to image", "vq-f4", 215.2, "not published", "label maps"),
    _second("semantic-synthesis512", "label map to image", "vq-f4", 215.2, "not published", "label maps"),
    _second("bsr-sr", "super-resolution by 4", "vq-f4", 113.6, "not published"),
    _second("inpainting-big", "inpainting", "vq-f4-noattn", 387.2, "not published"),
    _second(
        "rdm768", "text to image, with retrieval", "kl-f16", 1335.5, "not published", "CLIP embeddings", 0.22765929
    ),
    *(
        _second(f"{data}-ldm-{f}", task, first, size, "see the paper's figures 6 and 7", needs, origin="ablation")
        for data, task, needs, sizes in (
            ("imagenet", "class to image", _CLASSES, (396.8, 390.9, 400.9, 395.0, 395.0, 395.1)),
            ("celebahq", "unconditional", _IMAGES, (270.5, 264.5, 274.1, 257.7, 257.8, 257.9)),
        )
        for f, first, size in zip(
            (1, 2, 4, 8, 16, 32), (None, "vq-f2", "vq-f4", "vq-f8", "vq-f16", "vq-f32"), sizes, strict=True
        )
    ),
)
PUBLISHED = (*FIRST_STAGES, *DIFFUSIONS)
