"""Pages from templates: text is escaped, images and styles are embedded, and no other file is fetched."""

import base64
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from sfumato.images import png_bytes
from sfumato.report import format as formats


@cache
def _environment(further: Path | None = None) -> Environment:
    own = PackageLoader("sfumato.report")
    environment = Environment(
        loader=own if further is None else ChoiceLoader([FileSystemLoader(further), own]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("percent", "duration", "short_duration", "rate", "millions", "shape", "value"):
        environment.filters[name] = getattr(formats, name)
    environment.filters["data_uri"] = data_uri
    return environment


def render(template: str, further: Path | None = None, **values: Any) -> Markup:
    """Fills in a template of `report/templates`, or of the folder `further`.

    Raises jinja2.UndefinedError for a name that the template uses and `values` lacks.
    """
    return Markup(_environment(further).get_template(template).render(**values))


def stylesheet(name: str) -> Markup:
    """A style sheet of `report/templates`."""
    return render(name)


def data_uri(pixels: Tensor) -> str:
    """An image (3, H, W), uint8 or in [-1, 1], as an embedded PNG."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(pixels)).decode("ascii")
