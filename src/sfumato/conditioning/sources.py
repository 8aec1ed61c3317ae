"""Where pretrained encoders and tokenizers come from: a local folder, an installed package, or the model hub.

The hub is contacted only inside `fetching`, which the commands that train and sample use; everything else uses what is
on this machine. No code of a source is ever run.
"""

import contextlib
import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from sfumato.documents import read_json_object, read_text
from sfumato.errors import UserError
from sfumato.foreign import check_regular, short

PACKAGE = "package:"
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""How transformers opens a folder: without downloads, running code in it, or prompting."""
MAX_TOKENIZER = 64 << 20
"""Most bytes of a tokenizer.json."""
_ATTENTION = ("eager", "sdpa")
"""Attention implementations within transformers; others may load kernels from the hub."""
_FETCH: ContextVar[Callable[[str], None] | None] = ContextVar("fetch", default=None)


@contextlib.contextmanager
def fetching(say: Callable[[str], None]) -> Iterator[None]:
    """Within the block sources that name a hub model may be downloaded; `say` receives a message before each
    download."""
    token = _FETCH.set(say)
    try:
        yield
    finally:
        _FETCH.reset(token)


def model_folder(source: str, revision: str | None = None) -> Path:
    """The local folder of a model in the transformers layout (with a config.json).

    Args:
        source: a folder; `package:NAME`, an installed Python package with one inside; or a hub name, to download.
        revision: commit or tag of a hub name.

    Raises:
        UserError: there is no such folder, package or hub model; or the hub model is not on this machine, and this is
            not within `fetching`.
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
    say = _FETCH.get()
    patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        here = Path(snapshot_download(source, revision=revision, allow_patterns=patterns, local_files_only=True))
        if say is None or (here / "config.json").exists():
            return here
    except Exception as error:  # the hub's errors share no base with what its HTTP layer raises
        if say is None:
            raise UserError(
                f"{source!r} is neither a folder nor a model that was downloaded before; only training and sampling "
                "download: `sfumato sample` does, or name the folder of the model"
            ) from error
    say(f"downloading {source} from the model hub")
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise UserError(
            f"{source!r} is neither a folder nor a model that could be downloaded: {str(error)[:300]}"
        ) from error


def check_runs_no_code(folder: Path, types: Any) -> None:
    """Raises UserError if a model folder of transformers cannot be used without running code in it.

    An `auto_map` beside a model type that the library has itself (`types`) is harmless and ignored.
    """
    for name in ("config.json", "tokenizer_config.json", "adapter_config.json"):
        path = folder / name
        if not path.exists() and not path.is_symlink():
            continue
        config = read_json_object(path)
        if name == "adapter_config.json":
            raise UserError(f"{path}: adapters are not loaded; merge it into its model first")
        if name == "config.json" and "auto_map" in config and config.get("model_type") not in types:
            raise UserError(
                f"{path} requires running its own code (auto_map: {short(config['auto_map'])}), which is never done; "
                "give an encoder that the library transformers has itself"
            )
        for key in ("quantization_config", "attn_implementation", "_attn_implementation"):
            if config.get(key) is not None and not (key != "quantization_config" and config[key] in _ATTENTION):
                raise UserError(f"{path} has {key} {short(config[key])}, which would load other code; remove it")
    for path in folder.iterdir():
        if not path.is_dir():
            check_regular(path)


def tokenizer_text(source: str) -> str:
    """The text of a tokenizer.json: a file, or one in the folder that `model_folder` finds. Raises UserError."""
    path = Path(source).expanduser()
    if not path.is_file():
        if path.suffix == ".json":
            raise UserError(f"the tokenizer {source} does not exist; correct the path or set tokenizer: fitted")
        path = model_folder(source) / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"there is no tokenizer.json in {path.parent}; name the file itself")
    return read_tokenizer(path)


def read_tokenizer(path: Path) -> str:
    """The text of a tokenizer.json. Raises UserError naming the file if it is none."""
    from sfumato.conditioning.tokenizer import parsed

    text = read_text(path, "the tokenizer ", MAX_TOKENIZER)
    parsed(text, f"the tokenizer {str(path)!r}")
    return text


def weights_hash(folder: Path) -> str:
    """SHA-256 over the weight files of a model folder, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
