"""Models of the Hugging Face hub: `hub:OWNER/NAME`, or `hub:OWNER/NAME@REVISION`, stands wherever a model folder does.

Only files that a model folder has are downloaded, each is compared with the digest that the hub states, and weights are
read as those of any folder: safetensors and YAML, no code. What was downloaded stays in the hub's own cache and is used
where the hub cannot be reached.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sfumato.errors import UserError
from sfumato.foreign import printable

PREFIX = "hub:"
CONFIG, WEIGHTS = "config.yaml", "autoencoder.safetensors"
FILES = re.compile(r"config\.yaml|tokenizer\.json|[a-z][a-z_]{0,40}\.safetensors")
"""The files of a model folder."""
MOST_TEXT = 64 << 20
"""Bytes of a file that is no weights."""
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
REVISION = re.compile(r"[\w./-]{1,100}", re.ASCII)
CHUNK = 1 << 20


@dataclass(frozen=True)
class HubName:
    """A model of the hub: OWNER/NAME, and a branch, tag or commit."""

    repository: str
    revision: str = "main"

    def __str__(self) -> str:
        return PREFIX + self.repository + ("" if self.revision == "main" else f"@{self.revision}")


@dataclass(frozen=True)
class Stated:
    """The hub's facts about a file: bytes, and its SHA-256 (of large files) or git's SHA-1."""

    size: int
    sha256: str | None
    git: str | None


def is_hub(path: Path | str) -> bool:
    """Whether a path is the name of a model on the hub instead."""
    return str(path).startswith(PREFIX)


def looks_like_name(path: Path | str) -> bool:
    """Whether a path that does not exist could be meant as the name of a model on the hub."""
    return REPOSITORY.fullmatch(str(path)) is not None


def hub_name(text: Path | str) -> HubName:
    """The name in a text, with or without `hub:`. Raises UserError for anything else."""
    repository, at, revision = str(text).removeprefix(PREFIX).partition("@")
    valid = REPOSITORY.fullmatch(repository) and ".." not in repository and "--" not in repository
    if not valid or (at and not REVISION.fullmatch(revision)) or ".." in revision:
        raise UserError(
            f"{printable(str(text))[:200]!r} is not the name of a model on the hub: give OWNER/NAME, such as "
            "hub:someone/my-model, with @REVISION for another version than the newest"
        )
    return HubName(repository, revision or "main")


@lru_cache(maxsize=256)
def hub_folder(text: str) -> Path:
    """The folder of a model of the hub, downloaded where that is needed; asked for once in a process.

    Raises UserError if it is not there, cannot be reached and was not downloaded before, is no model of this library,
    or differs from what the hub states.
    """
    name = hub_name(text)
    try:
        with one_sentence(name):
            info = client().model_info(name.repository, revision=name.revision, files_metadata=True)
    except UnreachableError as error:
        return _downloaded_before(name, error)
    stated = stated_files(info)
    if CONFIG not in stated or WEIGHTS not in stated:
        lacking = CONFIG if CONFIG not in stated else WEIGHTS
        raise UserError(f"{str(name)!r} is not a model of sfumato: it lacks {lacking}")
    large = next((file for file, one in stated.items() if one.size > MOST_TEXT and not file.endswith("tensors")), None)
    if large is not None:
        raise UserError(f"{str(name)!r} is not opened: its {large} has more than {MOST_TEXT >> 20} MiB")
    folders = {_downloaded(name, info.sha, file, one).parent for file, one in stated.items()}
    if len(folders) > 1:
        raise UserError(f"{str(name)!r} has changed while it was downloaded: give the command again")
    return folders.pop()


def stated_files(info: Any) -> dict[str, Stated]:
    """The files of a model folder in a repository, with their digests."""
    found = {}
    for one in info.siblings or ():
        if FILES.fullmatch(one.rfilename):
            large = one.lfs["sha256"] if one.lfs else None
            found[one.rfilename] = Stated(one.size or 0, large, one.blob_id)
    return found


def differs(path: Path, stated: Stated) -> bool:
    """Whether a file is another one than the hub states."""
    size = path.stat().st_size
    digest = hashlib.sha256() if stated.sha256 else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return size != stated.size or digest.hexdigest() != (stated.sha256 or stated.git)


def client() -> Any:
    """The hub's client; HF_ENDPOINT and HF_TOKEN hold for it. Raises UserError where it is not installed."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError("models of the hub need the extra: pip install 'sfumato[hub]'") from None
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="sfumato")


class UnreachableError(UserError):
    """The hub did not answer."""


@contextmanager
def one_sentence(name: HubName) -> Iterator[None]:
    """Turns what the hub answers, or that it does not, into a UserError."""
    from huggingface_hub import errors

    try:
        yield
    except UserError:
        raise
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status >= 500:
            raise UnreachableError(f"the hub answered {status} for {str(name)!r}: try again later") from None
        raise UserError(_refusal(name, error, status, error.response.headers)) from None
    except errors.OfflineModeIsEnabled:
        raise UnreachableError(f"{str(name)!r} was not looked for, as HF_HUB_OFFLINE is set: unset it") from None
    except Exception as error:  # what the hub's HTTP layer raises has no base that all its versions share
        reason = printable(str(error)).strip().splitlines()[:1] or [type(error).__name__]
        raise UnreachableError(
            f"the hub cannot be reached for {str(name)!r} ({reason[0][:200]}): connect to the network, or give a folder"
        ) from None


def _refusal(name: HubName, error: Exception, status: int, headers: Mapping[str, str]) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name.repository!r} has no revision {name.revision!r}: leave @{name.revision} out for the newest"
    if status == 429:
        wait = headers.get("Retry-After", "")
        after = f"in {wait} seconds" if wait.isdigit() else "later"
        return f"the hub limits the requests from this address (429): try again {after}, or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return f"{str(name)!r} is available on request only: ask for access on its page, then set HF_TOKEN"
    if status in (401, 403, 404) and (isinstance(error, errors.RepositoryNotFoundError) or status != 404):
        if status == 403:
            return f"the hub does not allow this for {str(name)!r} (403): the token in HF_TOKEN lacks the right"
        return f"the hub has no model {name.repository!r} that you may see ({status}): check the name, or set HF_TOKEN"
    return f"the hub refused {str(name)!r} ({status}): {printable(str(error)).strip().splitlines()[-1][:200]}"


def _cache() -> str | None:
    return os.environ.get("HF_HUB_CACHE") or None


def _downloaded(name: HubName, commit: str, file: str, stated: Stated) -> Path:
    """A file in the cache; one that is new there is compared with what the hub states."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    known = try_to_load_from_cache(name.repository, file, cache_dir=_cache(), revision=commit)
    with one_sentence(name):
        options: dict[str, Any] = {"endpoint": os.environ.get("HF_ENDPOINT") or None, "cache_dir": _cache()}
        path = Path(hf_hub_download(name.repository, file, revision=name.revision, library_name="sfumato", **options))
    if not isinstance(known, str) and differs(path, stated):
        for each in (path.resolve(), path):
            each.unlink(missing_ok=True)
        raise UserError(f"{file} of {str(name)!r} is not what the hub states (its digest differs): try again")
    return path


def _downloaded_before(name: HubName, problem: UserError) -> Path:
    """The folder in the cache. Raises UserError if there is none."""
    from huggingface_hub import try_to_load_from_cache

    found = [
        try_to_load_from_cache(name.repository, file, cache_dir=_cache(), revision=name.revision)
        for file in (CONFIG, WEIGHTS)
    ]
    if all(isinstance(one, str) for one in found):
        return Path(str(found[0])).parent
    raise UserError(f"{problem}; it was not downloaded before")
