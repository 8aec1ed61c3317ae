"""Files of web servers: their version, and copying one."""

import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path

_SECONDS = 60.0
_CHUNK = 2**20
_GONE = (404, 410)


def version_of(address: str) -> tuple[str | None, ...]:
    """Length, entity tag and date of a file. Raises FileNotFoundError, and OSError for other answers."""
    with _answer(urllib.request.Request(address, method="HEAD")) as answer:
        return tuple(answer.headers.get(name) for name in ("Content-Length", "ETag", "Last-Modified"))


def copy(address: str, target: Path) -> None:
    """Copies a file. Raises FileNotFoundError, and OSError for other answers and for a copy that was cut off."""
    with _answer(urllib.request.Request(address)) as answer:
        with target.open("wb") as out:
            shutil.copyfileobj(answer, out, _CHUNK)
        expected = answer.headers.get("Content-Length")
    if expected is not None and int(expected) != target.stat().st_size:
        raise OSError(f"only {target.stat().st_size} of {expected} bytes arrived")


@contextmanager
def _answer(request: urllib.request.Request) -> Iterator[HTTPResponse]:
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        if error.code in _GONE:
            raise FileNotFoundError(request.full_url) from None
        raise OSError(f"{error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise OSError(str(error.reason)) from None
    except HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from None
