"""Properties of the published models that are not visible in shapes: heads, scale factor, prediction, loss.

Rows are distinguished by the U-Net's topology and, where two share one, by the kind of their conditioner.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """A published second stage: the properties visible in its shapes (`channels`, `token_dim` at full width), then the
    rest.

    size: side of its training images, in pixels.
    """

    name: str
    channels: int
    multipliers: tuple[int, ...]
    attended: tuple[int, ...]
    in_channels: int
    out_channels: int
    token_dim: int | None
    depth: int
    resample: str
    scale_shift: bool
    heads: int | None = None
    head_channels: int | None = None
    scale_factor: float = 1.0
    prediction: str = "eps"
    loss: str = "l2"
    linear: bool = False
    conditioner: str = ""
    size: int = 256

    def topology(self) -> tuple[object, ...]:
        """Everything but the widths."""
        tokens = self.token_dim is not None
        return (
            self.multipliers,
            self.attended,
            self.in_channels,
            self.out_channels,
            tokens,
            self.depth if tokens else 1,
            self.resample,
            self.scale_shift,
            self.linear,
        )


SD_SCALE = 0.18215
KNOWN: tuple[Known, ...] = (
    Known("ffhq256", 224, (1, 2, 3, 4), (2, 4, 8), 3, 3, None, 1, "conv", False, head_channels=32),
    Known("churches256", 192, (1, 2, 2, 4, 4), (1, 2, 4, 8), 4, 4, None, 1, "residual", True, heads=8, loss="l1"),
    Known("cin256", 256, (1, 2, 4), (1, 2, 4), 4, 4, 512, 1, "conv", False, head_channels=32),
    Known("cin256-v2", 192, (1, 2, 3, 5), (2, 4, 8), 3, 3, 512, 1, "conv", False, heads=1, conditioner="class"),
    Known("text2img256", 192, (1, 2, 3, 5), (2, 4, 8), 3, 3, 640, 1, "conv", False, head_channels=32,
          conditioner="bert"),
    Known("txt2img-1p4B", 320, (1, 2, 4, 4), (1, 2, 4), 4, 4, 1280, 1, "conv", False, heads=8, scale_factor=SD_SCALE,
          conditioner="bert"),
    Known("layout2img", 128, (1, 2, 3, 4), (2, 4, 8), 3, 3, 512, 3, "conv", False, head_channels=32, loss="l1"),
    Known("semantic", 128, (1, 4, 8), (), 6, 3, None, 1, "conv", False, heads=8, loss="l1"),
    Known("bsr_sr", 160, (1, 2, 2, 4), (8,), 6, 3, None, 1, "conv", False, head_channels=32),
    Known("inpainting_big", 256, (1, 2, 3, 4), (2, 4, 8), 7, 3, None, 1, "residual", False, heads=8, loss="l1"),
    Known("rdm768", 448, (1, 2, 3, 4), (1, 2, 4), 16, 16, 768, 1, "conv", False, head_channels=32,
          scale_factor=0.22765929, size=768),
    Known("stable-diffusion-1", 320, (1, 2, 4, 4), (1, 2, 4), 4, 4, 768, 1, "conv", False, heads=8,
          scale_factor=SD_SCALE, conditioner="clip", size=512),
    Known("stable-diffusion-1-inpainting", 320, (1, 2, 4, 4), (1, 2, 4), 9, 4, 768, 1, "conv", False, heads=8,
          scale_factor=SD_SCALE, conditioner="clip", size=512),
    Known("stable-diffusion-2", 320, (1, 2, 4, 4), (1, 2, 4), 4, 4, 1024, 1, "conv", False, head_channels=64,
          scale_factor=SD_SCALE, linear=True, prediction="", size=512),
    Known("stable-diffusion-2-inpainting", 320, (1, 2, 4, 4), (1, 2, 4), 9, 4, 1024, 1, "conv", False, head_channels=64,
          scale_factor=SD_SCALE, linear=True, size=512),
)  # fmt: skip
"""prediction "": both exist with the same shapes."""
