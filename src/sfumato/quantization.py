"""A model folder stored in 8 or 16 bits: written from another one, opened again, and compared with it."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from sfumato.autoencoder.tiny_file import FILE as TINY_FILE
from sfumato.conditioning.pretrained import PretrainedTextConfig
from sfumato.config import load_config
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.model_config import ModelConfig
from sfumato.model_folder import bits_of, find_folder, load
from sfumato.stored_precision import Bits, check_bits, relative_error
from sfumato.versions import CONFIG_FILE, replacing_folder


@dataclass(frozen=True)
class Quantized:
    """The changes of storing a model in fewer bits.

    Attributes:
        sizes: bytes before and after, by file of weights.
        error: the largest relative error of a tensor, |w - w'| / |w|.
        worst: the tensor that has it, as `denoiser.out.2.weight`.
        digests: of the model before and after.
        copied: folders of pretrained encoders inside the model folder, which stay as they are.
        left_out: names in the model folder that the new one does not have.
    """

    sizes: dict[str, tuple[int, int]]
    error: float
    worst: str
    digests: tuple[str, str]
    copied: tuple[str, ...]
    left_out: tuple[str, ...]


def quantize(model: Path | str, out: Path | str, bits: Bits = 8) -> Quantized:
    """Writes a model folder whose weights are stored in 8 or 16 bits; `out` is replaced once that has been opened.

    Args:
        model: a model folder, the folder of a run, or a name such as `zoo:toy`.
        out: the folder to write.
        bits: 8: int8 with a scale for each row of matrices and kernels, float16 for the rest; 16: float16.

    Raises UserError for other bits, for a model that is stored in as few bits already, and as `load` does.
    """
    check_bits(bits, "bits")
    folder = find_folder(model)
    already = bits_of(folder)
    if already is not None and already <= bits:
        raise UserError(f"{str(model)!r} is stored in {already} bits already: {bits} bits would not make it smaller")
    before = load(folder)
    as_written = load_config(str(folder / CONFIG_FILE), [], ModelConfig)  # `load` has made its paths absolute
    encoders = _encoders_inside(as_written, folder)
    with replacing_folder(Path(out)) as fresh:
        replace(before, config=as_written if encoders else before.config).write(fresh, bits)
        for name in encoders:
            shutil.copytree(folder / name, fresh / name)
        after = load(fresh)
        error, worst = _largest_error(before, after)
        files = [*(f"{part}.safetensors" for part in before.parts()), *([TINY_FILE] if before.tiny else [])]
        sizes = {name: (_bytes(folder / name), _bytes(fresh / name)) for name in files}
        left_out = sorted({path.name for path in folder.iterdir()} - {path.name for path in fresh.iterdir()})
    return Quantized(sizes, error, worst, (before.digest, after.digest), tuple(encoders), tuple(left_out))


def _encoders_inside(config: ModelConfig, folder: Path) -> list[str]:
    """The relative paths of pretrained encoders, and their tokenizers, that a model folder contains."""
    conditioner = None if config.diffusion is None else config.diffusion.conditioner
    found: list[str] = []
    for part in (conditioner, *getattr(conditioner, "parts", {}).values()):
        if isinstance(part, PretrainedTextConfig):
            found += [name for name in (part.source, part.tokenizer) if name is not None]
    return [name for name in dict.fromkeys(found) if _is_below(name) and (folder / name).is_dir()]


def _is_below(name: str) -> bool:
    """Whether a path cannot lead out of the folder that it starts in."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _largest_error(before: LatentDiffusion, after: LatentDiffusion) -> tuple[float, str]:
    errors = [(0.0, "")]
    others = after.parts()
    for name, part in before.parts().items():
        stored = others[name].state_dict()
        errors += [(relative_error(w, stored[key]), f"{name}.{key}") for key, w in part.state_dict().items()]
    return max(errors)


def _bytes(path: Path) -> int:
    return path.stat().st_size
