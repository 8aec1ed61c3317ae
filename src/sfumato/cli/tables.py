"""Plain tables: columns without lines, whole where the output is not a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 10_000


def show(header: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> None:
    """Prints rows under a header; into a file or a pipe a row is one line, however long."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDE)
    table = Table(box=None, show_header=header is not None, pad_edge=False, header_style="bold")
    for i, name in enumerate(header or rows[0]):
        table.add_column(name if header else "", overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
