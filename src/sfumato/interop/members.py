"""Reading of untrusted folders: files known by name, no links that lead out of the folder, no code.

Weights come in variants (`fp16`, `non_ema`) and shards; the preferred one is used, and reported if it is not the
plain one.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.checkpoint import save_tensors, write_text
from sfumato.counts import how_many
from sfumato.documents import read_json_object
from sfumato.errors import UserError
from sfumato.foreign import check_regular, short
from sfumato.interop.source import open_checkpoint

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
CODE_KEYS = ("auto_map", "custom_pipelines", "quantization_config", "attn_implementation", "_attn_implementation")
"""Entries of a configuration that name code or other libraries to load; they are removed."""
MAX_FILE = 64 << 20
"""Largest size of a tokenizer's file in bytes."""
MAX_SHARDS = 1000
_SUFFIXES = ("safetensors", "bin")
_ORDER = ("", "fp32", "ema", "fp16", "bf16", "non_ema")
"""Variants in the order of preference; the last has live weights where the others have averaged ones."""


def inside(root: Path, path: Path) -> Path:
    """`path`, which is below `root`; raises UserError for a link that leads out of it, or a file that is not regular.

    A snapshot in the model hub's cache may link to the blobs of its own model.
    """
    real, home = path.resolve(), root.resolve()
    allowed = [home]
    if home.parent.name == "snapshots" and (home.parent.parent / "blobs").is_dir():
        allowed.append(home.parent.parent / "blobs")
    if not any(real.is_relative_to(place) for place in allowed):
        raise UserError(f"{path} is a link that leads out of {root}; links are not followed: put the file itself there")
    check_regular(path)
    return path


@dataclass(frozen=True)
class Weights:
    """The weights of one component: one file, or an index and its shards."""

    variant: str
    suffix: str
    files: tuple[Path, ...]
    index: Path | None = None


def find_weights(root: Path, folder: Path, stems: Iterable[str]) -> Weights | None:
    """The preferred variant of the weights `STEM[.VARIANT].(safetensors|bin)` in a folder, whole or in shards.

    Raises UserError where a shard is missing, or its index does not belong to this folder.
    """
    stem = "|".join(re.escape(name) for name in stems)
    whole = re.compile(rf"^({stem})(?:\.(?P<variant>[\w-]+))?\.(?P<suffix>safetensors|bin)$")
    index = re.compile(
        rf"^({stem})(?:\.(?P<early>[\w-]+))?\.(?P<suffix>safetensors|bin)\.index(?:\.(?P<late>[\w-]+))?\.json$"
    )
    found: list[tuple[tuple[int, int, int], str, str, Path, bool]] = []
    for path in sorted(folder.iterdir()):
        for match, sharded in ((whole.match(path.name), False), (index.match(path.name), True)):
            if match is None or re.search(r"-\d+-of-\d+$", match.groupdict().get("variant") or ""):
                continue
            parts = match.groupdict()
            variant = parts.get("variant") or parts.get("early") or parts.get("late") or ""
            rank = (_rank(variant), _SUFFIXES.index(parts["suffix"]), int(sharded))
            found.append((rank, variant, parts["suffix"], path, sharded))
    if not found:
        return None
    _, variant, suffix, path, sharded = min(found)
    inside(root, path)
    if not sharded:
        return Weights(variant, suffix, (path,))
    return Weights(variant, suffix, _shards(root, path), path)


def _rank(variant: str) -> int:
    return _ORDER.index(variant) if variant in _ORDER else len(_ORDER)


def _shards(root: Path, index: Path) -> tuple[Path, ...]:
    table = read_json_object(index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f"{index} has no weight_map of keys to files; is it damaged?")
    names = sorted(set(table.values()))
    if len(names) > MAX_SHARDS:
        raise UserError(f"{index} names {how_many(len(names), 'file')}; is it damaged?")
    for name in names:
        if Path(name).name != name or name in (".", ".."):
            raise UserError(f"{index} names a file outside its folder: {short(name)}")
        if not (index.parent / name).exists():
            raise UserError(f"the shard {short(name)} that {index} names is missing: is the download complete?")
        inside(root, index.parent / name)
    return tuple(index.parent / name for name in names)


def variant_note(weights: Weights, where: str) -> str | None:
    """A note on the variant that is used; None for the plain one."""
    if not weights.variant:
        return None
    first = (weights.index or weights.files[0]).name
    live = " (live weights, not averaged)" if weights.variant == "non_ema" else ""
    return f"{where}: there are no plain weights, the variant {weights.variant}{live} is used: {first}"


def check_finite(tensors: Iterable[tuple[str, Tensor]], where: Path | str) -> None:
    """Raises UserError where a weight is not finite, with the first one's name and the numbers of values and
    tensors."""
    first, count = "", 0
    for name, tensor in tensors:
        bad = 0 if not tensor.is_floating_point() else tensor.numel() - int(tensor.isfinite().sum())
        if bad:
            count += 1
            first = first or f"the weight {short(name)} holds {bad} of {tensor.numel()} values that are not finite"
    if count:
        others = f" (and {count - 1} more weights contain some)" if count > 1 else ""
        raise UserError(f"{where}: {first}{others}: its training diverged, or the file is damaged")


# -- copies -----------------------------------------------------------------------------------------------------------


def copy_config(root: Path, path: Path, target: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Copies a configuration without entries that name code, and returns it. A file without such entries is copied
    bitwise."""
    value = read_json_object(inside(root, path))
    named = [key for key in CODE_KEYS if key in value]
    target.parent.mkdir(parents=True, exist_ok=True)
    if not named:
        shutil.copyfile(path, target)
        return value
    report(f"{path.parent.name}/{path.name}: left out {', '.join(named)}, which names code to load")
    kept = {key: item for key, item in value.items() if key not in CODE_KEYS}
    write_text(target, json.dumps(kept, indent=2) + "\n")
    return kept


def copy_tokenizer(source: Path, folder: Path, report: Callable[[str], None], root: Path | None = None) -> None:
    """Copies a tokenizer's files, known by name; raises UserError if the folder has none."""
    root = root or source
    found = [source / name for name in TOKENIZER_FILES if (source / name).exists() or (source / name).is_symlink()]
    if not any(path.name in ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model") for path in found):
        raise UserError(f"the folder {source} contains no tokenizer (tokenizer.json, or vocab.json with merges.txt)")
    folder.mkdir(parents=True, exist_ok=True)
    for path in found:
        if inside(root, path).stat().st_size > MAX_FILE:
            raise UserError(f"{path} has more than {MAX_FILE >> 20} MiB; it is not a tokenizer's")
        if path.name == "tokenizer_config.json":
            copy_config(root, path, folder / path.name, report)
        else:
            shutil.copyfile(path, folder / path.name)


def copy_text_encoder(root: Path, source: Path, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Copies a text encoder's configuration and weights, the latter as one plain safetensors file; returns the former.

    Raises UserError where they are missing or not finite.
    """
    config = copy_config(root, source / "config.json", folder / "config.json", report)
    weights = find_weights(root, source, ("model", "pytorch_model"))
    if weights is None:
        raise UserError(f"{source} has no weights (model.safetensors or pytorch_model.bin); is the folder complete?")
    line = variant_note(weights, source.name)
    if line is not None:
        report(line)
    tensors: dict[str, Tensor] = {}
    for path in weights.files:
        tensors |= {key: tensor.load() for key, tensor in open_checkpoint(path, rename=False).tensors.items()}
    check_finite(tensors.items(), source)
    if weights.index is None and weights.suffix == "safetensors":
        shutil.copyfile(weights.files[0], folder / "model.safetensors")
    else:
        save_tensors(folder / "model.safetensors", tensors)
    return config


def left_out(root: Path, taken: Iterable[Path]) -> str | None:
    """A note on the files below a folder that were not used: their number, and some of their names."""
    known = set(taken)
    names = sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if (path.is_symlink() or not path.is_dir()) and path not in known
    )
    if not names:
        return None
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"left out {len(names)} file{'s' * (len(names) > 1)} not used here: {shown}"
