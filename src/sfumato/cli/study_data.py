"""The images of a study: the toy world, the data of a configuration, or a folder."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sfumato.cli.flags import REQUIRED, flag
from sfumato.cli.forms import request_flag
from sfumato.cli.schema_flags import schema_flag
from sfumato.cli.study_run import StudyFolder

if TYPE_CHECKING:
    from sfumato.data.table import DataConfig


@dataclass(frozen=True, kw_only=True)
class StudyPlace(StudyFolder):
    """Where a study is written, and its images."""

    data: str = flag(
        REQUIRED,
        "data",
        "The folder of images; toy for the built-in world; zoo:NAME or FILE.yaml: its data.",
        path=True,
    )
    size: tuple[int, int] | None = request_flag(
        "size", help="Height and width in pixels; by default 64, or that of the configuration."
    )
    length: int = schema_flag("data.toyworld.dataset:ToyWorldConfig", "length", "data", help="Images of the toy world.")

    def source(self) -> "DataConfig":
        """The images. Raises UserError."""
        return data_config(self.data, self.size, self.length)


def data_config(data: str, size: tuple[int, int] | None, length: int) -> "DataConfig":
    """The toy world, what a configuration reads, or a folder; 64 pixels a side where no size is given.

    Raises UserError for a configuration without data of its own.
    """
    from sfumato.config import ZOO_PREFIX, parse, read_source, section
    from sfumato.data.folder_config import FolderConfig
    from sfumato.data.toyworld.dataset import ToyWorldConfig
    from sfumato.errors import UserError
    from sfumato.studies.plan import StudyData

    if data.startswith(ZOO_PREFIX) or data.endswith(".yaml"):
        given = section(read_source(data), "data")
        if given.get("kind", "folder") == "folder" and "path" not in given:
            raise UserError(f"--data {data}: that configuration names no images; give the folder of images itself")
        return parse({"data": given | ({} if size is None else {"size": list(size)})}, StudyData, data).data
    side = size or (64, 64)
    if data == "toy" and not os.path.isdir(data):
        return parse({"kind": "toy", "size": list(side), "length": length}, ToyWorldConfig, "--length")
    return parse({"kind": "folder", "path": data, "size": list(side)}, FolderConfig, "--data")
