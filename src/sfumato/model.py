"""A trained model: its parts, its configuration, and the folder both live in (YAML + safetensors, no pickle)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, overload

import torch
import yaml
from PIL.Image import Image
from torch import Tensor, nn

from sfumato import pictures
from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig, PixelsConfig
from sfumato.autoencoder.scaling import Scaling
from sfumato.checkpoint import check_finite, load_into, load_tensors, save_tensors, write_text
from sfumato.conditioning.condition import ConditionSpec
from sfumato.conditioning.pretrained import PretrainedText
from sfumato.conditioning.sources import MAX_TOKENIZER
from sfumato.conditioning.table import build_conditioner, stored_tokenizer, text_config
from sfumato.config import load_config, to_yaml
from sfumato.denoiser.table import build_denoiser
from sfumato.diffusion.schedule import build_schedule
from sfumato.distilled import DistilledDecoder, load_distilled
from sfumato.documents import read_text
from sfumato.engine.inference import for_inference
from sfumato.errors import UserError
from sfumato.foreign import reading
from sfumato.model_config import DiffusionConfig as DiffusionConfig
from sfumato.model_config import ModelConfig as ModelConfig
from sfumato.pipeline import latents as codec
from sfumato.pipeline import pipeline
from sfumato.pipeline.parts import SecondStage as SecondStage
from sfumato.pipeline.parts import latent_shape
from sfumato.pipeline.plan import warn_of
from sfumato.pipeline.request import DEFAULT_MEMORY, DecoderName, SampleRequest
from sfumato.versions import CONFIG_FILE as CONFIG_FILE
from sfumato.versions import OLD, read_one_version, replacing_folder

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class LatentDiffusion:
    """A model ready for use; an autoencoder alone has no `second` stage. Made by `load` or by training."""

    config: ModelConfig
    autoencoder: Autoencoder
    scaling: Scaling
    second: SecondStage | None = None
    tiny: DistilledDecoder | None = None
    """A decoder for previews; neither one of the parts nor in the digest."""

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
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

        None chooses bfloat16 where processor or GPU multiply it natively; float32 gives the plain numbers to rounding.
        """
        _ = self.digest  # packing uses the weights up
        for_inference(self.autoencoder, dtype)
        if self.second is not None:
            for_inference(self.second.denoiser, dtype)
        if self.tiny is not None:
            for_inference(self.tiny.network, dtype)
        return self

    @cached_property
    def digest(self) -> str:
        """Twelve hex digits that name these weights and this configuration."""
        identity = self.config.model_dump(mode="json", exclude={"inputs", "classes_seen"}) | {"about": {}}
        key = hashlib.sha256(yaml.safe_dump(identity, sort_keys=False, allow_unicode=True).encode())
        for name, part in sorted(self.parts().items()):
            for tensor_name, tensor in part.state_dict().items():
                key.update(f"{name}.{tensor_name}".encode())
                key.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return key.hexdigest()[:12]

    def save(self, folder: Path | str) -> None:
        """Writes the model folder; one that stood there is replaced only once the new one is whole."""
        folder = Path(folder)
        with replacing_folder(folder) as fresh:
            for name, part in self.parts().items():
                save_tensors(fresh / f"{name}.safetensors", part.state_dict())
            if self.tiny is not None:
                self.tiny.save(fresh)
            tokenizer = stored_tokenizer(self.second.conditioner) if self.second else None
            if tokenizer is not None:
                write_text(fresh / TOKENIZER_FILE, tokenizer)
            write_text(fresh / CONFIG_FILE, to_yaml(self.config))

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
        """
        images = self.sample_tensor(prompt, **options)
        return images if as_tensor else [pictures.to_pil(image) for image in images]

    def sample_tensor(self, prompt: Sequence[str] | str | None = None, **options: Any) -> Tensor:
        """As `sample`: images (N, 3, H, W) in about [-1, 1]. Warns of prompts that are cut."""
        samples = pipeline.sample(self, SampleRequest(prompt=prompt, **options))
        warn_of(samples.plan.notes)
        return samples.images

    def decode(self, latents: Tensor, decoder: DecoderName = "full", memory: int = DEFAULT_MEMORY) -> Tensor:
        """Model latents (N, C, h, w), as a step of sampling shows them, -> images (N, 3, H, W) in about [-1, 1].

        decoder: "tiny" takes the one for previews; UserError where the model has none. memory: as in a request.
        """
        return pipeline.decode(self, latents, SampleRequest(decoder=decoder, memory=memory))

    def encode(self, images: Tensor, memory: int = DEFAULT_MEMORY) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] -> model latents (N, C, h, w), by the posterior's mean."""
        return codec.encode(self.autoencoder, self.scaling, images.to(self.device), memory=memory)

    def reconstruct(self, images: Tensor, batch: int = 16, memory: int = DEFAULT_MEMORY) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] through the autoencoder and back; `memory` as in a request.

        Raises UserError where the result is not finite.
        """
        made = codec.reconstruct(self.autoencoder, images.to(self.device), batch, memory)
        check_finite({"image": made}, "what the first stage computes")
        return made


def build(config: ModelConfig, tokenizer: str | None = None) -> LatentDiffusion:
    """The model of a configuration with fresh weights."""
    autoencoder = Autoencoder(config.autoencoder)
    scaling = Scaling.from_factor(autoencoder.latent_channels, 1.0)
    second = None
    if config.diffusion is not None:
        conditioner = build_conditioner(config.diffusion.conditioner, tokenizer)
        spec = ConditionSpec() if conditioner is None else conditioner.spec
        denoiser = build_denoiser(config.diffusion.denoiser, autoencoder.latent_channels, spec)
        with torch.device("cpu"):  # its tables are looked at, also where the networks are on the meta device
            schedule = build_schedule(config.diffusion.schedule)
        second = SecondStage(config.diffusion, denoiser, conditioner, schedule)
    return LatentDiffusion(config, autoencoder, scaling, second)


def pixel_space(size: tuple[int, int]) -> LatentDiffusion:
    """What stands for the first stage of a diffusion model in pixel space (the paper's LDM-1), at a size (H, W)."""
    config = AutoencoderConfig(channel_multipliers=(1,), bottleneck=PixelsConfig())
    return build(ModelConfig(autoencoder=config, image_size=size))


def _check_kind(path: Path) -> None:
    """Raises UserError for the folder, or the run, of another kind of model."""
    folders = (path / "model", path)
    if any((folder / "transformer.safetensors").exists() for folder in folders):
        raise UserError(
            f"{str(path)!r} is a transformer over codes, no diffusion model: draw with `sfumato sample-codes`"
        )
    if any((folder / "classifier.safetensors").exists() for folder in folders):
        raise UserError(
            f"{str(path)!r} is a classifier of noisy latents, no diffusion model: give it to `sfumato sample` as "
            "--classifier, beside the model that it guides"
        )


def find_folder(path: Path | str) -> Path:
    """The model folder at a path, or the `model` folder of a run there. Raises UserError where there is neither."""
    path = Path(path)
    replaced = [folder.with_name(OLD.format(folder.name)) for folder in (path / "model", path) if folder.name]
    for folder in (path / "model", path, *replaced):
        if (folder / "autoencoder.safetensors").exists() and (folder / CONFIG_FILE).exists():
            return folder
    if not path.exists():
        raise UserError(f"model {str(path)!r} does not exist; give a model folder or the folder of a run")
    _check_kind(path)
    damaged = next((folder for folder in (path / "model", path) if any(folder.glob("*.safetensors"))), None)
    if damaged is not None:
        lost = CONFIG_FILE if (damaged / "autoencoder.safetensors").exists() else "autoencoder.safetensors"
        raise UserError(f"the model folder {str(damaged)!r} is not whole: it lacks {lost}")
    if (path / "states").is_dir():
        raise UserError(
            f"the run in {str(path)!r} has not saved a model yet; let it reach its first train.save_every steps"
        )
    raise UserError(
        f"{str(path)!r} is neither a model folder nor the folder of a run: it holds no {CONFIG_FILE} with weights"
    )


def load(path: Path | str, device: torch.device | str = "cpu") -> LatentDiffusion:
    """Opens a model folder, or the newest model of a run, also while a training replaces it.

    Raises UserError naming what is missing or does not fit.
    """
    return read_one_version(lambda: find_folder(path), _load).to(device)


def _load(folder: Path) -> LatentDiffusion:
    """The model in a folder, on the CPU."""
    with reading(folder):
        return _opened(folder)


def _opened(folder: Path) -> LatentDiffusion:
    config = with_own_encoders(load_config(str(folder / CONFIG_FILE), [], ModelConfig), folder)
    tokenizer_file = folder / TOKENIZER_FILE
    tokenizer = read_text(tokenizer_file, "the tokenizer ", MAX_TOKENIZER) if tokenizer_file.exists() else None
    text = text_config(config.diffusion.conditioner) if config.diffusion else None
    if tokenizer is None and text is not None and text.tokenizer == "fitted":
        raise UserError(f"the model folder {str(folder)!r} is not whole: it lacks {TOKENIZER_FILE}")
    with torch.device("meta"):
        model = build(config, tokenizer)
    for name, part in model.parts().items():
        load_into(part, load_tensors(folder / f"{name}.safetensors")[0], str(folder / f"{name}.safetensors"))
        _place_buffers(part)
        part.eval().requires_grad_(False)
    _check_encoders(model)
    return replace(model, tiny=load_distilled(folder, model.autoencoder))


def _check_encoders(model: LatentDiffusion) -> None:
    """Raises UserError for a pretrained text encoder, which is no part of the model, with weights not finite."""
    conditioner = None if model.second is None else model.second.conditioner
    for module in () if conditioner is None else conditioner.modules():
        if isinstance(module, PretrainedText):
            check_finite(module.encoder.state_dict(), f"the text encoder {module.config.source}")


def _place_buffers(part: nn.Module) -> None:
    """Buffers that no file holds (they only remember the device) leave the meta device too."""
    for module in part.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                module.register_buffer(name, torch.empty_like(buffer, device="cpu"), persistent=False)


def with_own_encoders(config: ModelConfig, folder: Path) -> ModelConfig:
    """The configuration with the pretrained encoders that lie in the model folder named by their full paths."""
    raw = config.model_dump()
    if raw["diffusion"] is None:
        return config
    conditioner = raw["diffusion"]["conditioner"]
    for part in [conditioner, *conditioner.get("parts", {}).values()]:
        if part["kind"] != "pretrained-text":
            continue
        for key in ("source", "tokenizer"):
            if part[key] is not None and (folder / part[key]).is_dir():
                part[key] = str((folder / part[key]).resolve())
    return ModelConfig.model_validate(raw)
