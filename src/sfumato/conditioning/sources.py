"""Where pretrained encoders and tokenizers come from: a local folder, an installed package, or the model hub."""

import hashlib
import importlib.util
from pathlib import Path

from sfumato.errors import UserError

PACKAGE = "package:"


def model_folder(source: str, revision: str | None = None) -> Path:
    """The local folder of a model in the transformers layout (with a config.json).

    Args:
        source: a folder; `package:NAME`, an installed Python package with one inside; or a hub name, to download.
        revision: commit or tag of a hub name.

    Raises:
        UserError: there is no such folder, package or hub model.
    """
    if source.startswith(PACKAGE):
        return _inside_package(source.removeprefix(PACKAGE))
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise UserError(f"the folder {source} of the pretrained encoder does not exist; correct the path")
    return _from_hub(source, revision)


def _inside_package(name: str) -> Path:
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise UserError(f"the package {name} is not installed; install it or name a folder instead of {PACKAGE}{name}")
    root = Path(next(iter(found.submodule_search_locations)))
    configs = sorted(root.rglob("config.json"), key=lambda path: (len(path.parts), path))
    if not configs:
        raise UserError(f"the package {name} ships no model (no config.json); name a folder instead of {PACKAGE}{name}")
    return configs[0].parent


def _from_hub(source: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(f"downloading {source} needs the extra: pip install 'sfumato[text]'") from error
    try:
        patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub's errors share no base with what its HTTP layer raises
        raise UserError(f"{source} is neither a folder nor a model that could be downloaded: {error}") from error


def tokenizer_text(source: str) -> str:
    """The text of a tokenizer.json: a file, or one in the folder that `model_folder` finds. Raises UserError."""
    path = Path(source).expanduser()
    if not path.is_file():
        if path.suffix == ".json":
            raise UserError(f"the tokenizer {source} does not exist; correct the path or set tokenizer: fitted")
        path = model_folder(source) / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"there is no tokenizer.json in {path.parent}; name the file itself")
    return path.read_text(encoding="utf-8")


def weights_hash(folder: Path) -> str:
    """SHA-256 over the weight files of a model folder, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
