"""Parts of the page as HTML text; everything put in is escaped."""

from base64 import b64encode
from collections.abc import Container, Iterable, Mapping
from html import escape
from pathlib import Path

from immiscible_diffusion.reporting.style import CSS

_PNG = b"\x89PNG\r\n\x1a\n"
Table = tuple[list[str], list[list[str]]]
# The browser itself refuses to fetch anything.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, sections: Iterable[str], style: str = "") -> str:
    """A whole page of ``sections`` (those that are empty are left out) that needs nothing else."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def facts(items: Iterable[tuple[str, str]]) -> str:
    """A line of figures, each with what it counts."""
    listed = "".join(f"<li><b>{escape(a)}</b> {escape(b)}</li>" for a, b in items)
    return f'<ul class="facts">{listed}</ul>'


def definitions(items: Mapping[str, str]) -> str:
    """Names and what they stand for."""
    listed = "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in items.items())
    return f"<dl>{listed}</dl>"


def legend(items: Iterable[tuple[str, str]]) -> str:
    """A legend of ``(key as SVG, label)``."""
    listed = "".join(f"<li>{key}{escape(label)}</li>" for key, label in items)
    return f'<ul class="legend">{listed}</ul>'


def panel(svg: str, kind: str = "") -> str:
    """Put a plot on its white panel: plots stay readable in the dark."""
    return f'<div class="panel {kind}">{svg}</div>'


def plain_table(content: Table, indented: Container[str] = ()) -> str:
    """A table that scrolls sideways on a phone; rows that begin with ``indented`` are indented."""
    header, rows = content
    body = []
    for row in rows:
        kind = ' class="control"' if row[0] in indented else ""
        body.append(f"<tr{kind}>{''.join(map(_data_cell, row))}</tr>")
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in header)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(body)}</table></div>'


def _data_cell(text: str) -> str:
    verdicts = {"helps", "hurts", "unresolved", "one seed", "missing", "ends better", "ends worse"}
    kind = f' class="badge {css_class(text)}"' if text in verdicts else ""
    return f"<td{kind}>{escape(text)}</td>"


def image(folder: Path, path: str | None, title: str) -> str:
    """The PNG or GIF at ``folder / path`` as a data URI, or the word 'missing'.

    Raises:
        ValueError: the file is of neither kind, by its content and its name.
    """
    if path is None or not (folder / path).is_file():
        return '<span class="soft">missing</span>'
    content = (folder / path).read_bytes()
    kind, start = ("gif", b"GIF8") if path.endswith(".gif") else ("png", _PNG)
    if not content.startswith(start):
        raise ValueError(f"{folder / path} is not a {kind.upper()}; expected a picture: {title}")
    data = b64encode(content).decode("ascii")
    return f'<img alt="{escape(title)}" src="data:image/{kind};base64,{data}">'


def css_class(verdict: str) -> str:
    """Turn a verdict into a class name."""
    return verdict.replace(" ", "-")
