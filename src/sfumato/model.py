"""A trained model: its parts, its configuration, and their folder (YAML + safetensors, no pickle)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, overload

import torch
import yaml
from PIL.Image import Image
from torch import Tensor, nn

from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig, PixelsConfig
from sfumato.autoencoder.scaling import Scaling
from sfumato.autoencoder.tiny_file import DistilledDecoder
from sfumato.checkpoint import check_finite, save_tensors, write_text
from sfumato.conditioning.condition import ConditionSpec
from sfumato.conditioning.table import build_conditioner, stored_tokenizer
from sfumato.config import to_yaml
from sfumato.denoiser.dit import LATER_SETTINGS, DiTConfig
from sfumato.denoiser.table import build_denoiser
from sfumato.diffusion.schedule import build_schedule
from sfumato.engine.inference import for_inference
from sfumato.images import to_pil
from sfumato.model_config import DiffusionConfig as DiffusionConfig
from sfumato.model_config import ModelConfig as ModelConfig
from sfumato.pipeline import latents as codec
from sfumato.pipeline import pipeline
from sfumato.pipeline.parts import SecondStage as SecondStage
from sfumato.pipeline.parts import latent_shape
from sfumato.pipeline.plan import warn_of
from sfumato.pipeline.request import DEFAULT_MEMORY, DecoderName, SampleRequest
from sfumato.stored_precision import Bits, check_bits
from sfumato.versions import CONFIG_FILE as CONFIG_FILE
from sfumato.versions import replacing_folder

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class LatentDiffusion:
    """A model ready for use; an autoencoder alone has no `second` stage. Created by `load` or by training.

    Example:
        >>> model = sfumato.load("zoo:toy")
        >>> model.save("copy")
        >>> sfumato.load("copy").digest == model.digest
        True
    """

    config: ModelConfig
    autoencoder: Autoencoder
    scaling: Scaling
    second: SecondStage | None = None
    tiny: DistilledDecoder | None = None
    """A decoder for previews; not one of the parts and not in the digest."""

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.scaling.shift.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) at the training size."""
        return self.latent_shape_of(self.config.image_size)

    def latent_shape_of(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(C, h, w) of images of size (H, W). Raises UserError where f does not divide them."""
        return latent_shape(self, size)

    def parts(self) -> dict[str, nn.Module]:
        """The modules by the name of their file."""
        parts: dict[str, nn.Module] = {"autoencoder": self.autoencoder, "scaling": self.scaling}
        if self.second is not None:
            parts["denoiser"] = self.second.denoiser
            if self.second.conditioner is not None:
                parts["conditioner"] = self.second.conditioner
        return parts

    def to(self, device: torch.device | str) -> Self:
        """Moves the weights and returns the model."""
        for part in self.parts().values():
            part.to(device)
        if self.tiny is not None:
            self.tiny.network.to(device)
        return self

    def for_inference(self, dtype: torch.dtype | None = None) -> Self:
        """Packs the networks for fast calls and returns the model, which can no longer be trained, saved or moved.

        None chooses bfloat16 where processor or GPU multiply it natively; float32 equals the unpacked model to
        rounding.
        """
        _ = self.digest  # packing discards the plain weights
        for_inference(self.autoencoder, dtype)
        if self.second is not None:
            for_inference(self.second.denoiser, dtype)
        if self.tiny is not None:
            for_inference(self.tiny.network, dtype)
        return self

    @cached_property
    def digest(self) -> str:
        """Twelve hex digits that identify these weights and this configuration."""
        described = {"conditioning_metadata", "classes_seen", "trained_sizes"}
        identity = self.config.model_dump(mode="json", exclude=described) | {"about": {}}
        if self.config.autoencoder.padding == "zeros":
            del identity["autoencoder"]["padding"]  # as before there was a choice
        if self.config.diffusion is not None and self.config.diffusion.student is None:
            # ordinary models keep the digests that they had before there were students
            del identity["diffusion"]["student"], identity["diffusion"]["denoiser"]["flow_map"]
        if self.config.diffusion is not None and self.config.diffusion.latents == "sample":
            del identity["diffusion"]["latents"]  # as before it could be the mean
        if self.config.diffusion is not None and isinstance(self.config.diffusion.denoiser, DiTConfig):
            for name in LATER_SETTINGS:
                if getattr(self.config.diffusion.denoiser, name) == DiTConfig.model_fields[name].default:
                    del identity["diffusion"]["denoiser"][name]
        key = hashlib.sha256(yaml.safe_dump(identity, sort_keys=False, allow_unicode=True).encode())
        for name, part in sorted(self.parts().items()):
            for tensor_name, tensor in part.state_dict().items():
                key.update(f"{name}.{tensor_name}".encode())
                key.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return key.hexdigest()[:12]

    def save(self, folder: Path | str, bits: Bits | None = None) -> None:
        """Writes the model folder; an existing one is replaced only once the new one is complete.

        bits: 8 or 16 store the weights rounded, in about a quarter or half of the bytes (`sfumato.stored_precision`);
            what is loaded from the folder has another digest then. None: as they are.

        Raises UserError for other bits, with `bits` also for weights that are not finite, and where the folder cannot
        be written.
        """
        if bits is not None:
            check_bits(bits, "bits")
        with replacing_folder(Path(folder)) as fresh:
            self.write(fresh, bits)

    def write(self, folder: Path, bits: Bits | None = None) -> None:
        """Writes the files of a model folder into an empty folder; otherwise as `save`."""
        for name, part in self.parts().items():
            of_part = None if name == "scaling" else bits  # a few numbers, which scale every latent
            save_tensors(folder / f"{name}.safetensors", part.state_dict(), bits=of_part)
        if self.tiny is not None:
            self.tiny.save(folder, bits)
        tokenizer = stored_tokenizer(self.second.conditioner) if self.second else None
        if tokenizer is not None:
            write_text(folder / TOKENIZER_FILE, tokenizer)
        write_text(folder / CONFIG_FILE, to_yaml(self.config))

    # ---- use

    @overload
    def sample(self, prompt: Sequence[str] | None = None, *, as_tensor: Literal[True], **options: Any) -> Tensor: ...

    @overload
    def sample(
        self, prompt: Sequence[str] | None = None, *, as_tensor: Literal[False] = False, **options: Any
    ) -> list[Image]: ...

    def sample(
        self, prompt: Sequence[str] | str | None = None, *, as_tensor: bool = False, **options: Any
    ) -> list[Image] | Tensor:
        """Samples images; the options are the fields of `sfumato.pipeline.request.SampleRequest`.

        Returns PIL images, or (N, 3, H, W) in about [-1, 1]. Raises UserError for options that do not fit this model.

        Example:
            >>> model = sfumato.load("zoo:toy")
            >>> images = model.sample(["a red circle", "a blue star"], steps=2, seed=7)
            >>> [image.size for image in images]
            [(32, 32), (32, 32)]
        """
        images = self.sample_tensor(prompt, **options)
        return images if as_tensor else [to_pil(image) for image in images]

    def sample_tensor(self, prompt: Sequence[str] | str | None = None, **options: Any) -> Tensor:
        """As `sample`: images (N, 3, H, W) in about [-1, 1]. Warns of truncated prompts."""
        samples = pipeline.sample(self, SampleRequest(prompt=prompt, **options))
        warn_of(samples.plan.notes)
        return samples.images

    def decode(self, latents: Tensor, decoder: DecoderName = "full", memory: int = DEFAULT_MEMORY) -> Tensor:
        """Model latents (N, C, h, w), as in a sampling callback -> images (N, 3, H, W) in about [-1, 1].

        decoder: "tiny" uses the one for previews; UserError where the model has none. memory: as in a request.
        """
        return pipeline.decode(self, latents, SampleRequest(decoder=decoder, memory=memory))

    def encode(self, images: Tensor, memory: int = DEFAULT_MEMORY) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] -> model latents (N, C, h, w), the posterior's mean.

        Example:
            >>> model = sfumato.load("zoo:toy")
            >>> latents = model.encode(torch.zeros(2, 3, 32, 48))
            >>> latents.shape, model.decode(latents).shape
            (torch.Size([2, 3, 8, 12]), torch.Size([2, 3, 32, 48]))
        """
        return codec.encode(self.autoencoder, self.scaling, images.to(self.device), memory=memory)

    def reconstruct(self, images: Tensor, batch: int = 16, memory: int = DEFAULT_MEMORY) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] through the autoencoder and back; `memory` as in a request.

        Raises UserError where the result is not finite.
        """
        made = codec.reconstruct(self.autoencoder, images.to(self.device), batch, memory)
        check_finite({"image": made}, "what the first stage computes")
        return made


def build(config: ModelConfig, tokenizer: str | None = None) -> LatentDiffusion:
    """The model of a configuration with newly initialised weights."""
    autoencoder = Autoencoder(config.autoencoder)
    scaling = Scaling.from_factor(autoencoder.latent_channels, 1.0)
    second = None
    if config.diffusion is not None:
        conditioner = build_conditioner(config.diffusion.conditioner, tokenizer)
        spec = ConditionSpec() if conditioner is None else conditioner.spec
        denoiser = build_denoiser(config.diffusion.denoiser, autoencoder.latent_channels, spec)
        with torch.device("cpu"):  # its values are read, also where the networks are on the meta device
            schedule = build_schedule(config.diffusion.schedule)
        second = SecondStage(config.diffusion, denoiser, conditioner, schedule)
    return LatentDiffusion(config, autoencoder, scaling, second)


def pixel_space(size: tuple[int, int]) -> LatentDiffusion:
    """The identity first stage of a diffusion model in pixel space (the paper's LDM-1), at a size (H, W)."""
    config = AutoencoderConfig(channel_multipliers=(1,), bottleneck=PixelsConfig())
    return build(ModelConfig(autoencoder=config, image_size=size))
