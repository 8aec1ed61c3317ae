"""Features of a diffusion transformer that diffusers' DiTPipeline cannot express, refused by name."""

from sfumato.denoiser.dit import DiTConfig
from sfumato.errors import UserError
from sfumato.model import DiffusionConfig, ModelConfig

MOST_CLASSES = 1000
"""DiTPipeline takes the class of this number as the unconditional one."""
ELSE = "or use the model folder as it is, or --format onnx"


def refuse_transformer(config: ModelConfig, diffusion: DiffusionConfig, denoiser: DiTConfig) -> None:
    """Raises UserError for anything that DiTTransformer2DModel and DiTPipeline cannot express, with a remedy."""
    _refuse_conditions(diffusion, denoiser)
    _refuse_network(denoiser)
    H, W = config.image_size
    if H != W:
        raise UserError(
            f"a DiT trained on images of {H}x{W} cannot be exported: DiTPipeline samples squares; train on squares, "
            f"{ELSE}"
        )
    patches = H // config.autoencoder.factor // denoiser.patch
    if denoiser.position_grid not in (None, patches):
        raise UserError(
            f"a DiT with position_grid: {denoiser.position_grid} cannot be exported: diffusers counts the {patches} "
            f"patches of the training size; train with position_grid: {patches} or null, {ELSE}"
        )


def _refuse_conditions(diffusion: DiffusionConfig, denoiser: DiTConfig) -> None:
    conditioner = diffusion.conditioner
    if conditioner.kind != "class" or conditioner.output != "vector":
        found = {"none": "without a condition", "class": "whose class is a token"}
        kind = found.get(conditioner.kind, f"with conditioner.kind: {conditioner.kind}")
        raise UserError(
            f"a DiT {kind} cannot be exported: DiTPipeline takes one class, as a vector; train with "
            f"conditioner={{kind: class, output: vector}}, {ELSE}"
        )
    if conditioner.null == "none":
        raise UserError(
            "a DiT whose classes have no unconditional one (conditioner.null: none) cannot be exported: DiTPipeline's "
            f"table always has it; train with null: learned, {ELSE}"
        )
    if conditioner.classes > MOST_CLASSES:
        raise UserError(
            f"a DiT with {conditioner.classes} classes cannot be exported: DiTPipeline takes class {MOST_CLASSES} as "
            f"the unconditional one, so it has at most {MOST_CLASSES}; use the model folder as it is, or --format onnx"
        )
    if denoiser.vector_projection == "mlp":
        raise UserError(
            "a DiT whose class vector passes through an MLP cannot be exported: diffusers adds it as it is; train with "
            f"denoiser.vector_projection: none and conditioner.dim: {denoiser.width}, {ELSE}"
        )


def _refuse_network(denoiser: DiTConfig) -> None:
    if denoiser.time != "index":
        raise UserError(
            f"a DiT with time: {denoiser.time} (SiT) cannot be exported: DiTPipeline gives its network the step, 0 to "
            "999; use the model folder as it is, or --format onnx"
        )
    if denoiser.time_frequencies != "closed":
        raise UserError(
            f"a DiT with time_frequencies: {denoiser.time_frequencies} cannot be exported: diffusers embeds time at "
            "other frequencies than DiT was published with, so its predictions would differ; train with "
            f"denoiser.time_frequencies: closed, {ELSE}. Setting it in config.yaml without training makes the export "
            "that is published of DiT, whose samples differ slightly"
        )
    if denoiser.expansion != 4:
        raise UserError(
            f"a DiT with expansion: {denoiser.expansion} cannot be exported: diffusers' feed-forward branches are four "
            f"times as wide as a token; train with denoiser.expansion: 4, {ELSE}"
        )
