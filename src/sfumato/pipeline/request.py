"""`SampleRequest`: every option of sampling, each declared once with its type, range, default and help."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sfumato.errors import UserError
from sfumato.pipeline.memory import check_memory
from sfumato.pipeline.options import Range, check_options, option

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.conditioning.condition import Condition
    from sfumato.pipeline.parts import Model
    from sfumato.pipeline.record import SampleRecord
    from sfumato.sampling.grids import GridConfig
    from sfumato.sampling.loop import Step
    from sfumato.sampling.table import SamplerConfig

AUTO = "auto"
DEFAULT_STEPS = 20
DEFAULT_GUIDANCE = 3.0
DEFAULT_OVERLAP = 0.25
DEFAULT_MEMORY = 4 << 30
DecoderName = Literal["full", "tiny"]

MOST_IMAGES = 1_000_000
LONGEST_SIDE = 65_536
SCALE = Range(-1000.0, 1000.0)
SHARE = Range(0.0, 1.0)
SIDE = Range(1, LONGEST_SIDE, whole=True)
SEED = Range(-(2**63), 2**63 - 1, whole=True)
STEPS = Range(1, 10_000, whole=True)


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Adaptive projected guidance (Sadat et al. 2025): see `sfumato.sampling.guidance.Projected`."""

    parallel: float = option(
        0.0, "guidance", "Weight of the part along the conditional latent (the paper's eta).", Range(-100.0, 100.0)
    )
    limit: float | None = option(
        None,
        "guidance",
        "Longest guidance difference, a norm over a sample's latent (the paper's r); none: no limit.",
        Range(0.0, 1e6, above=True),
    )
    momentum: float = option(
        0.0,
        "guidance",
        "Weight of earlier steps (the paper's beta, about -0.5).",
        Range(-1.0, 1.0, above=True, below=True),
    )

    def __post_init__(self) -> None:
        check_options(self, "projection.")


@dataclass(frozen=True, eq=False)
class ClassifierGuidance:
    """Guidance by a classifier of noisy latents (Dhariwal & Nichol 2021, Algorithm 2).

    log_likelihood: (x_t (B, C, h, w), t) -> (B,), differentiable in x_t; see `LatentClassifier.guide`.
    """

    log_likelihood: "Callable[[Tensor, Tensor], Tensor]"
    scale: float = option(1.0, "guidance", "Weight of the classifier's gradient; 0 is off.", SCALE)

    def __post_init__(self) -> None:
        check_options(self, "classifier ")


@dataclass(frozen=True, eq=False)
class ImageGuidance:
    """Image guidance (the paper's appendix C): a loss of the decoded image, whose negative gradient the samples follow.

    loss: images (B, 3, H, W), about [-1, 1] -> distance of each from the target (B,), at least 0; differentiable.
    """

    loss: "Callable[[Tensor], Tensor]"
    scale: float = option(
        1.0, "guidance", "Share of the remaining distance to the target in each step.", Range(0.0, 1000.0, above=True)
    )

    def __post_init__(self) -> None:
        check_options(self, "image guidance ")


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleRequest:
    """Every option of sampling images by `sfumato.pipeline.pipeline.sample`.

    Where a value may be one or one for each image, a list has as many entries as there are images. The constructor
    raises UserError for a number outside its range and for images that this machine's memory cannot hold.

    Example:
        >>> options = sfumato.SampleRequest(steps=2, guidance=2.0, seed=7)
        >>> model, image = sfumato.load("zoo:toy"), Image.new("RGB", (40, 32), "white")
        >>> [edited.size for edited in sfumato.tasks.edit(model, image, "a blue star", options=options)]
        [(40, 32)]
    """

    prompt: str | Sequence[str] | None = option(None, "what to sample", "Prompts; omit for unconditional samples.")
    label: int | str | Sequence[int | str] | None = option(
        None, "what to sample", "Classes by number or name, one for each image or one for all."
    )
    count: int | None = option(
        None,
        "what to sample",
        "Number of images, unless it follows from the prompts, labels or seeds.",
        Range(1, MOST_IMAGES, whole=True),
    )
    seed: int = option(0, "what to sample", "Seed of the first image; each further one has the next number.", SEED)
    seeds: Sequence[int] | None = option(
        None, "what to sample", "A seed for each image; a seed gives the same image in any batch.", SEED
    )
    size: tuple[int, int] | None = option(
        None, "what to sample", "Height and width in pixels; by default the training size.", SIDE
    )
    condition: "Condition | None" = option(
        None, "what to sample", "A ready-made condition, a row for each image, instead of prompt, label and fields."
    )
    fields: Mapping[str, Any] | None = option(
        None,
        "what to sample",
        "Inputs of the conditioner besides text and label: maps, boxes, low-resolution images, masks; a row each.",
    )
    noise: "Tensor | None" = option(
        None, "what to sample", "Noise (N, C, h, w) to start from instead of the seeds': interpolated, or inverted."
    )
    initial: "Tensor | None" = option(
        None, "what to sample", "Clean model latents (1 or N, C, h, w) to start from, noised by `strength` (SDEdit)."
    )
    strength: float = option(
        1.0, "what to sample", "How far the initial latent is noised: 0 keeps it, 1 starts from pure noise.", SHARE
    )
    known: "Tensor | None" = option(
        None, "what to sample", "Clean model latents (1 or N, C, h, w) to keep where `keep` is 1."
    )
    keep: "Tensor | None" = option(
        None, "what to sample", "Mask (1 or N, 1, h, w) of latent positions: 1 keeps `known`, 0 generates."
    )
    jumps: tuple[int, int] | None = option(
        None,
        "what to sample",
        "RePaint's LENGTH,REPEATS: each stretch of LENGTH steps is sampled REPEATS times.",
        Range(1, 10_000, whole=True),
    )

    guidance: float | Sequence[float] | Mapping[str, float] | None = option(
        None,
        "guidance",
        "Classifier-free guidance scale: one for all images, one for each image, or one for each part of a composite "
        "condition; 1 is off [default: 3 where the model supports it].",
        SCALE,
    )
    negative: str | Sequence[str] | None = option(
        None, "guidance", "Negative prompts, which guidance moves away from; one for each image or one for all."
    )
    interval: tuple[float, float] = option(
        (0.0, 1.0), "guidance", "Times from 0 (clean) to 1 (noise) between which guidance is applied.", SHARE
    )
    rescale: float = option(
        0.0, "guidance", "How much of the contrast added by strong guidance is removed (Lin et al. 2024).", SHARE
    )
    projection: Projection | None = option(None, "guidance", "Adaptive projected guidance (Sadat et al. 2025).")
    autoguide: "Model | None" = option(
        None, "guidance", "A weaker version of the model that guidance moves away from (Karras et al. 2024)."
    )
    autoguide_scale: float = option(2.0, "guidance", "Scale of the guidance by the weaker model; 1 is off.", SCALE)
    classifier: ClassifierGuidance | None = option(None, "guidance", "Guidance by a classifier of noisy latents.")
    image_guidance: ImageGuidance | None = option(None, "guidance", "Guidance by a loss of the decoded image.")

    sampler: "str | SamplerConfig" = option(
        AUTO, "sampler", "Sampler by name, with settings as in unipc:order=3; auto chooses."
    )
    steps: int | None = option(
        None, "sampler", "Sampling steps, unless `times` lists them [default: 20, a student's 4].", STEPS
    )
    eta: float | None = option(
        None, "sampler", "Amount of new noise in ddim and dpmpp-2m-sde: 0 is deterministic.", SHARE
    )
    grid: "str | GridConfig | None" = option(
        None, "sampler", "Spacing of the steps, with settings as in karras:rho=5; by default the sampler's."
    )
    shift: float | None = option(
        None, "sampler", "Above 1 places more of the steps at noisy times (flow models).", Range(0.0, 100.0, above=True)
    )
    times: Sequence[float] | None = option(
        None,
        "sampler",
        "Decreasing times of the steps: in [0, 1] including the end, or timesteps of the training schedule.",
        Range(0.0, 1e6),
    )

    decoder: DecoderName = option("full", "output", "tiny: the small decoder for previews, if the model has one.")
    callback: "Callable[[Step], None] | None" = option(
        None, "output", "Called after every step of every batch with its times, latents and expected clean latents."
    )

    on_record: "Callable[[SampleRecord], None] | None" = option(
        None, "output", "Called with the record of the request once it is planned, before the first step."
    )

    batch: int = option(16, "machine", "Images computed at once.", Range(1, MOST_IMAGES, whole=True))
    memory: int = option(
        DEFAULT_MEMORY,
        "machine",
        "Bytes for feature maps while encoding and decoding; larger images are computed in bands with the same result.",
        Range(1, 2**60, whole=True),
    )
    window: int | None = option(
        0,
        "machine",
        "Side in pixels of the overlapping windows of large images; 0: none; None: the training size, where the image "
        "has more than four times its area.",
        Range(0, LONGEST_SIDE, whole=True),
    )
    overlap: float = option(
        DEFAULT_OVERLAP,
        "machine",
        "Overlap of neighbouring windows, a share of their side.",
        Range(0.0, 1.0, below=True),
    )
    reuse: int = option(
        1,
        "machine",
        "Approximate: every Nth network call is complete, the others reuse its deep features; 1 is off.",
        Range(1, 1000, whole=True),
    )

    def __post_init__(self) -> None:
        check_options(self)
        low, high = self.interval
        if low > high:
            raise UserError(f"interval is ({low:g}, {high:g}): give LOW and HIGH with LOW at most HIGH")
        if self.size is not None:
            check_memory(self.size, min(self.batch, self.count or self.batch))
