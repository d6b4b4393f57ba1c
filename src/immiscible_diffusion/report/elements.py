"""Parts of the page as HTML text; everything put in is escaped."""

from base64 import b64encode
from html import escape
from pathlib import Path

from immiscible_diffusion.report.results import Comparison
from immiscible_diffusion.report.tables import Table

_PNG = b"\x89PNG\r\n\x1a\n"


def panel(svg: str, kind: str = "") -> str:
    """Put a plot on its white panel: plots stay readable in the dark."""
    return f'<div class="panel {kind}">{svg}</div>'


def table(content: Table, comparison: Comparison) -> str:
    """A table that scrolls sideways on a phone; rows of controls are indented."""
    header, rows = content
    controls = {entry.label for entry in comparison.couplings if entry.control_of is not None}
    body = []
    for row in rows:
        kind = ' class="control"' if row[0] in controls else ""
        body.append(f"<tr{kind}>{''.join(map(_data_cell, row))}</tr>")
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in header)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(body)}</table></div>'


def _data_cell(text: str) -> str:
    verdicts = {"helps", "hurts", "unresolved", "one seed", "missing", "ends better", "ends worse"}
    kind = f' class="badge {css_class(text)}"' if text in verdicts else ""
    return f"<td{kind}>{escape(text)}</td>"


def image(folder: Path, path: str | None, title: str) -> str:
    """The PNG at ``folder / path`` as a data URI, or the word 'missing'."""
    if path is None or not (folder / path).is_file():
        return '<span class="soft">missing</span>'
    content = (folder / path).read_bytes()
    if not content.startswith(_PNG):
        raise ValueError(f"{folder / path} is not a PNG; expected the sample grid: {title}")
    data = b64encode(content).decode("ascii")
    return f'<img alt="Samples: {escape(title)}" src="data:image/png;base64,{data}">'


def css_class(verdict: str) -> str:
    """Turn a verdict into a class name."""
    return verdict.replace(" ", "-")
