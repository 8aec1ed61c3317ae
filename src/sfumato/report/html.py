"""HTML by function calls: text is escaped where it enters, markup is a type of its own, pictures travel inline."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

from torch import Tensor

from sfumato import pictures

VOID = frozenset({"img", "meta", "br", "hr"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: str) -> Markup:
    """A string as markup: escaped, unless it is markup."""
    return value if isinstance(value, Markup) else Markup(escape(value))


def join(parts: Iterable[str], between: str = "") -> Markup:
    """Several pieces in a row."""
    return Markup(text(between).join(text(part) for part in parts))


def element(tag: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """`<tag attributes>children</tag>`; `class_` becomes class, other underscores hyphens, None leaves one out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if tag in VOID:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{join(children)}</{tag}>")


def image(pixels: Tensor, alt: str, css: str = "pixels", width: int | None = None) -> Markup:
    """A picture (3, H, W), uint8 or in [-1, 1], as a PNG inside the page; shown `width` CSS pixels wide."""
    H, W = pixels.shape[-2:]
    shown = W if width is None else width
    data = base64.b64encode(pictures.png_bytes(pixels)).decode("ascii")
    source = f"data:image/png;base64,{data}"
    return element("img", src=source, alt=alt, class_=css, width=shown, height=round(shown * H / W))


def figure(content: str, caption: str = "", css: str | None = None) -> Markup:
    """A figure with its caption below."""
    below = element("figcaption", caption) if caption else Markup()
    return element("figure", content, below, class_=css)


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], css: str | None = None, marked: Sequence[int] = ()
) -> Markup:
    """A table whose first column names the row; the rows numbered in `marked` stand out."""
    header = element("thead", element("tr", *(element("th", cell, scope="col") for cell in head)))
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell) for cell in row[1:]),
            class_="marked" if index in marked else None,
        )
        for index, row in enumerate(rows)
    ]
    return element("div", element("table", header, element("tbody", *body), class_=css), class_="scroll")
