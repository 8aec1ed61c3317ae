"""Images in Parquet files: a column of bytes, or of bytes and paths, as Hugging Face's datasets have them."""

import io
import json
from collections import OrderedDict
from functools import partial
from pathlib import Path
from threading import Lock
from typing import IO, Any

from sfumato.data.containers.addresses import addresses_of
from sfumato.data.containers.config import ContainersConfig
from sfumato.data.containers.index import DamagedContainer, Index, Sample, Stored, looked_at
from sfumato.data.containers.storage import Form
from sfumato.data.dataset import UnreadableImage
from sfumato.data.tables.config import ParquetConfig
from sfumato.errors import UserError

ENDING = ".parquet"
HUB = "hub:"
_MOST_HELD = 4
"""Groups of rows that are held beyond those that are shuffled together."""


def parquet_addresses(config: ParquetConfig) -> list[str]:
    """The addresses of the files. Raises UserError if there are none."""
    path = config.path
    if path.startswith(HUB):
        name, _, revision = path.removeprefix(HUB).partition("@")
        if name.count("/") != 1:
            raise UserError(f"data.path {path!r} is not the name of a dataset: give hub:OWNER/NAME")
        path = f"hf://datasets/{name}{'@' + revision if revision else ''}/**/*{ENDING}"
    found = addresses_of(path, ENDING)
    kept = [address for address in found if config.split is None or config.split in address.rpartition("/")[2]]
    if not kept:
        raise UserError(f"data.split is {config.split!r}, which is in no name of the {len(found)} files of {path}")
    return kept


class Groups:
    """Columns of images by file and group of rows, the newest ones held: a group is decoded as a whole."""

    def __init__(self, column: str, most: int) -> None:
        self._column, self._most = column, most
        self._held: OrderedDict[tuple[Path, int], Any] = OrderedDict()
        self._lock = Lock()

    def cell(self, path: Path, group: int, row: int) -> bytes:
        """The bytes of an image. Raises OSError."""
        with self._lock:
            key = (path, group)
            if key not in self._held:
                self._held[key] = _file(path).read_row_group(group, columns=[self._column]).column(0)
                while len(self._held) > self._most:
                    self._held.popitem(last=False)
            self._held.move_to_end(key)
            column = self._held[key]
        content, _ = _image_of(column[row].as_py())
        if content is None:
            raise OSError(f"row {row} of {path} has no image any more")
        return content


def parquet_form(config: ParquetConfig) -> Form:
    """How the files of a configuration are read."""
    groups = Groups(config.image_column, config.together + _MOST_HELD)

    def opened(path: Path, stored: Stored) -> IO[bytes]:
        group, row = divmod(stored.start, _ROWS)
        return io.BytesIO(groups.cell(path, group, row))

    return Form("table", ENDING, _read_table, opened)


_ROWS = 2**32
"""More than the rows of a group: a place is group * _ROWS + row."""


def _read_table(path: Path, address: str, config: ContainersConfig) -> Index:
    """All rows with an image. Raises DamagedContainer; UserError if there is no such column."""
    assert isinstance(config, ParquetConfig)
    file = _file(path)
    columns = file.schema_arrow.names
    if config.image_column not in columns:
        raise UserError(
            f"{address} has no column {config.image_column!r}: set data.image_column to one of "
            f"{', '.join(columns[:12])}"
        )
    names = _class_names(file.schema_arrow.metadata)
    samples: list[Sample] = []
    unreadable: list[tuple[str, str]] = []
    starts: list[int] = []
    number = 0
    for group in range(file.num_row_groups):
        starts.append(len(samples))
        for row, values in enumerate(_rows(file, group)):
            content, given = _image_of(values.pop(config.image_column))
            name = f"{number:09d}{Path(given or '').suffix.lower()}"
            number += 1
            try:
                if not content:
                    raise UnreadableImage(name, f"the row has no bytes{f', only the path {given!r}' if given else ''}")
                place, opened = f"{address}/{name}", partial(io.BytesIO, content)
                digest, header = looked_at(place, len(content), opened, config.max_pixels)
            except UnreadableImage as error:
                unreadable.append((name, error.reason))
                continue
            stored = Stored(name, group * _ROWS + row, len(content))
            samples.append(Sample(stored, digest, header, _plain(values, names)))
    return Index(tuple(samples), tuple(unreadable), starts=tuple(starts) or (0,))


def _rows(file: Any, group: int) -> list[dict[str, Any]]:
    import pyarrow as pa

    try:
        found: list[dict[str, Any]] = file.read_row_group(group).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DamagedContainer(f"group {group} of its rows cannot be read ({str(error).splitlines()[0]})") from None
    return found


def _file(path: Path) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError("data.kind parquet needs the package pyarrow: pip install 'sfumato[tables]'") from None
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DamagedContainer(f"it is no whole Parquet file ({str(error).splitlines()[0][:120]})") from None


def _image_of(cell: Any) -> tuple[bytes | None, str | None]:
    """Bytes and path of a cell."""
    if isinstance(cell, dict):
        content, path = cell.get("bytes"), cell.get("path")
        return content if isinstance(content, bytes) else None, path if isinstance(path, str) else None
    return (cell if isinstance(cell, bytes) else None), None


def _plain(values: dict[str, Any], names: dict[str, list[str]]) -> dict[str, Any]:
    """The other columns: numbers of classes as their names; bytes, dates and empty cells are left out."""
    found: dict[str, Any] = {}
    for column, value in values.items():
        if column in names and isinstance(value, int) and 0 <= value < len(names[column]):
            found[column] = names[column][value]
        elif isinstance(value, str | int | float | bool | list | dict) and _is_json(value):
            found[column] = value
    return found


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Names of classes by column, from what the `datasets` library notes in a file."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {
            column: list(map(str, about["names"]))
            for column, about in features.items()
            if isinstance(about, dict) and about.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
