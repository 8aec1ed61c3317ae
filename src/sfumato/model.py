"""A trained model: its parts, its configuration, and the folder both live in (YAML + safetensors, no pickle)."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, cast, overload

import torch
import yaml
from PIL.Image import Image
from pydantic import Field
from torch import Tensor, nn

from sfumato import drawing, generate, pictures
from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig, PixelsConfig
from sfumato.autoencoder.scaling import Scaling
from sfumato.checkpoint import load_into, load_tensors, save_tensors, write_text
from sfumato.conditioning.condition import Condition, Conditioner, ConditionSpec
from sfumato.conditioning.table import (
    ConditionerConfig,
    NoneConfig,
    build_conditioner,
    class_config,
    stored_tokenizer,
    text_config,
)
from sfumato.config import load_config, nearest, parse, to_yaml
from sfumato.denoiser.table import DenoiserConfig, build_denoiser
from sfumato.diffusion.prediction import PredictionKind
from sfumato.diffusion.schedule import Schedule, ScheduleConfig, build_schedule
from sfumato.distilled import DistilledDecoder, load_distilled
from sfumato.drawing import DEFAULT_STEPS as DEFAULT_STEPS
from sfumato.engine.inference import for_inference
from sfumato.engine.tiles import DEFAULT_MEMORY
from sfumato.errors import UserError
from sfumato.inputs import Inputs
from sfumato.sampling.sampler import Denoise
from sfumato.sampling.table import SAMPLERS, SamplerConfig
from sfumato.sampling.windows import OVERLAP, Window, windowed
from sfumato.schema import Schema
from sfumato.versions import CONFIG_FILE as CONFIG_FILE
from sfumato.versions import OLD, read_one_version, replacing_folder

TOKENIZER_FILE = "tokenizer.json"
DEFAULT_SAMPLER = drawing.AUTO
DEFAULT_GUIDANCE = 3.0
WHOLE_AREAS = 4
"""Pictures of up to this many times the training area are denoised as a whole, where windows are left to the model."""


class DiffusionConfig(Schema):
    """The second stage: network, steering, noise schedule, and what the network predicts."""

    denoiser: DenoiserConfig
    conditioner: ConditionerConfig = NoneConfig()
    schedule: ScheduleConfig
    prediction: PredictionKind = "eps"
    condition_dropout: float = Field(0.0, ge=0, le=1)
    """How often the condition was dropped in training; 0: the model does not know the case without, guidance is off."""
    part_dropout: dict[str, float] = Field(default_factory=dict)
    """The same for single parts of a composite conditioner, which may then have a guidance scale each."""


class ModelConfig(Schema):
    """`config.yaml` of a model folder. `about` records what it was trained on, for people."""

    format: Literal[1] = 1
    autoencoder: AutoencoderConfig
    image_size: tuple[int, int]
    """(H, W) of the training images."""
    classes: tuple[str, ...] | None = None
    inputs: Inputs = Inputs()
    """What steers the model beside text and class: names, colours, factors, the values of masks."""
    diffusion: DiffusionConfig | None = None
    about: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class SecondStage:
    """What the diffusion model adds to the autoencoder."""

    config: DiffusionConfig
    denoiser: nn.Module
    conditioner: Conditioner | None
    schedule: Schedule


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
        f = self.autoencoder.factor
        drawing.check_multiple(size, f, f"f = {f}, this model's downsampling factor")
        return (self.autoencoder.latent_channels, size[0] // f, size[1] // f)

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
        identity = self.config.model_dump(mode="json", exclude={"inputs"}) | {"about": {}}
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

    def condition(
        self,
        n: int,
        text: Sequence[str] | None = None,
        label: Sequence[int | str] | None = None,
        size: tuple[int, int] | None = None,
        negative: Sequence[str] | str | None = None,
    ) -> tuple[Condition, Condition | None]:
        """The condition of n samples, and what guidance leads away from: the unconditional one, or that of `negative`.

        Nothing given: both are the unconditional one. The second is None where the model does not know it.
        Raises UserError where the model is not steered by what is given, or needs what is not.
        """
        conditioner = self._second().conditioner
        reads = () if conditioner is None else conditioner.reads
        for name, field, value in (
            ("text", "text", text),
            ("label", "label", label),
            ("negative prompt", "text", negative),
        ):
            if value is not None and field not in reads:
                takes = f"it is steered by {' and '.join(reads)}" if reads else "it was trained without any condition"
                raise UserError(f"this model takes no {name}: {takes}")
        if conditioner is None:
            return Condition(), None
        _, h, w = self.latent_shape_of(size or self.config.image_size)
        dropped = self._second().config.condition_dropout > 0
        null = conditioner.null(n, (h, w)) if dropped else None
        if null is not None and text is None and label is None and negative is None:
            return null, null
        missing = [name for name in reads if {"text": text, "label": label}.get(name) is None]
        needed = [name for name in missing if not (name == "text" and dropped)]
        if needed:
            why = "" if dropped else "; trained without condition dropout, it cannot do without"
            raise UserError(f"this model is steered by {' and '.join(reads)}: give a {needed[0]}{why}")
        fields: dict[str, Any] = {"text": list(text) if text is not None else [""] * n}
        if label is not None:
            fields["label"] = torch.tensor([self.class_index(value) for value in label], device=self.device)
        if negative is not None:
            null = conditioner({**fields, "text": [negative] * n if isinstance(negative, str) else list(negative)})
        return conditioner(fields), null

    def class_index(self, label: int | str) -> int:
        """The number of a class given by number or name. Raises UserError for an unknown one."""
        names = self.config.classes or ()
        if isinstance(label, str) and label in names:
            return names.index(label)
        if isinstance(label, int) or label.isdecimal():
            part = class_config(self._second().config.conditioner)
            count = len(names) if part is None else part.classes
            if not 0 <= int(label) < count:
                raise UserError(f"label {label} is outside 0 to {count - 1}, the numbers of this model's classes")
            return int(label)
        raise UserError(
            f"label {label!r} is not one of this model's classes{nearest(label, names)}: "
            f"{', '.join(names) or 'they have no names, give a number'}"
        )

    @overload
    def sample(self, text: Sequence[str] | None = None, *, as_tensor: Literal[True], **options: Any) -> Tensor: ...

    @overload
    def sample(
        self, text: Sequence[str] | None = None, *, as_tensor: Literal[False] = False, **options: Any
    ) -> list[Image]: ...

    def sample(
        self, text: Sequence[str] | str | None = None, *, as_tensor: bool = False, **options: Any
    ) -> list[Image] | Tensor:
        """Draws pictures; the options are the fields of `sfumato.drawing.Drawing`.

        Returns PIL images, or (N, 3, H, W) in [-1, 1].
        """
        images = self.sample_tensor(text, **options)
        return images if as_tensor else [pictures.to_pil(image) for image in images]

    def sample_tensor(self, text: Sequence[str] | str | None = None, **options: Any) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1]; the options are the fields of `sfumato.drawing.Drawing`.

        Raises UserError for options that do not fit this model.
        """
        return self.draw(drawing.Drawing(text=text, **options))

    def draw(self, options: drawing.Drawing) -> Tensor:
        """As `sample_tensor`, for options made before."""
        return drawing.draw(self, options)

    def decode(self, latents: Tensor, decoder: drawing.DecoderName = "full", memory: int = DEFAULT_MEMORY) -> Tensor:
        """Model latents (N, C, h, w), as a step of sampling shows them, -> images (N, 3, H, W) in about [-1, 1].

        decoder: "tiny" takes the one for previews; UserError where the model has none. memory: as for `sample_tensor`.
        """
        if decoder == "tiny":
            return generate.preview(drawing.tiny_decoder(self), self.scaling, latents, memory=memory)
        return generate.decode(self.autoencoder, self.scaling, latents, memory=memory)

    def encode(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] -> model latents (N, C, h, w), by the posterior's mean."""
        return generate.encode(self.autoencoder, self.scaling, images.to(self.device))

    def over_windows(
        self,
        denoise_of: Callable[[Window], Denoise],
        size: tuple[int, int],
        window: int | None = None,
        overlap: float = OVERLAP,
    ) -> Denoise:
        """A denoise function of a latent (h, w) from those of its windows; arguments as for `sample_tensor`.

        Raises UserError for a window whose side the networks' factors do not divide, or an overlap outside [0, 1).
        """
        f, factor = self.autoencoder.factor, self._second().config.denoiser.factor
        trained = (self.config.image_size[0] // f, self.config.image_size[1] // f)
        if window is None:
            sides = trained if size[0] * size[1] > WHOLE_AREAS * trained[0] * trained[1] else size
        elif window == 0:
            sides = size
        else:
            if window < 0 or window % (f * factor):
                said = f"{f * factor}, the downsampling factors of this model's two networks together"
                raise UserError(f"window is {window} pixels: give a multiple of {said}, or 0 for none")
            sides = (window // f, window // f)
        return windowed(denoise_of, size, sides, overlap)

    def reconstruct(self, images: Tensor, batch: int = 16, memory: int = DEFAULT_MEMORY) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] through the first stage and back; `memory` as for `sample_tensor`."""
        return generate.reconstruct(self.autoencoder, images.to(self.device), batch, memory)

    def _second(self) -> SecondStage:
        return drawing.second_stage(self)

    def guidance_scale(self, guidance: float | None, steers: bool = True) -> float:
        """The scale that is used where `guidance` is asked for; 1 where nothing `steers`, as there is no way to lead.

        Raises UserError where the model does not know the unconditional case, or the scale is not finite.
        """
        config = self._second().config
        if guidance is not None and not math.isfinite(guidance):
            raise UserError(f"guidance is {guidance:g}: give a finite number, 1 is off")
        if config.conditioner.kind == "none":
            if guidance not in (None, 1.0):
                raise UserError(f"guidance {guidance:g} needs a condition, but this model was trained without any")
            return 1.0
        if config.condition_dropout == 0:
            if guidance not in (None, 1.0):
                raise UserError(
                    f"guidance {guidance:g} cannot work: this model was trained without condition dropout "
                    "(train.condition_dropout), so it does not know the unconditional case; use guidance 1"
                )
            return 1.0
        if not steers:
            return 1.0
        return DEFAULT_GUIDANCE if guidance is None else guidance


def sampler_named(name: str, **options: Any) -> SamplerConfig:
    """The configuration of a sampler by name. Raises UserError for an unknown name or option."""
    if name not in SAMPLERS:
        raise UserError(f"sampler {name!r} is not one of {', '.join(SAMPLERS)}{nearest(name, SAMPLERS)}")
    return cast(SamplerConfig, parse({"kind": name, **options}, SAMPLERS[name].config, f"sampler {name}"))


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
    config = with_own_encoders(load_config(str(folder / CONFIG_FILE), [], ModelConfig), folder)
    tokenizer_file = folder / TOKENIZER_FILE
    tokenizer = tokenizer_file.read_text(encoding="utf-8") if tokenizer_file.exists() else None
    text = text_config(config.diffusion.conditioner) if config.diffusion else None
    if tokenizer is None and text is not None and text.tokenizer == "fitted":
        raise UserError(f"the model folder {str(folder)!r} is not whole: it lacks {TOKENIZER_FILE}")
    with torch.device("meta"):
        model = build(config, tokenizer)
    for name, part in model.parts().items():
        load_into(part, load_tensors(folder / f"{name}.safetensors")[0], str(folder / f"{name}.safetensors"))
        _place_buffers(part)
        part.eval().requires_grad_(False)
    return replace(model, tiny=load_distilled(folder, model.autoencoder))


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
