"""Pages from the jinja2 templates beside this file, with tables and images of their own.

In an ``.html`` template text is escaped, and a page needs nothing from elsewhere: the browser
may fetch nothing.
"""

from base64 import b64encode
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immiscible_diffusion.utils.optional_deps import require_extra
from immiscible_diffusion.utils.png import is_whole_png

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from pandas import DataFrame

_SMALL = 400  # width of an image that is enlarged without smoothing
_TYPES = {".png": ("image/png", b"\x89PNG\r\n\x1a\n"), ".gif": ("image/gif", b"GIF8")}


def render(template: str, **context: Any) -> str:
    """The text of ``templates/<template>``; a name that the context lacks is an error."""
    return _environment().get_template(template).render(**context)


@lru_cache(maxsize=1)
def _environment() -> "Environment":
    with require_extra("train", "reports"):
        from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
    environment = Environment(
        loader=PackageLoader("immiscible_diffusion.reporting"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": number, "table": table}
    return environment


def number(value: float | None) -> str:
    """Three significant digits, without exponent for usual sizes: 0.0123, 1.20, 12,300."""
    if value is None or value != value:
        return "-"
    if abs(value) >= 999.5:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:#.3g}".removesuffix(".") if value else "0"


def table(frame: "DataFrame", **formats: Callable[[Any], str]) -> "Markup":
    """``frame`` without its index as an HTML table that scrolls sideways on a phone.

    Cells are escaped and missing ones become '-', but for the columns of ``formats``: name ->
    function from a cell to ``Markup``.
    """
    import pandas as pd
    from markupsafe import Markup, escape

    def cell(value: Any) -> str:
        return "-" if pd.isna(value) else escape(value)

    columns = [str(name) for name in frame.columns]
    functions = [formats.get(name, cell) for name in columns]
    frame = frame.set_axis([escape(name) for name in columns], axis=1)
    with pd.option_context("display.max_colwidth", None):
        text = frame.to_html(index=False, border=0, escape=False, formatters=functions)
    return Markup(f'<div class="scroll">{text}</div>')


def image(content: bytes, kind: str, alt: str, css_class: str = "") -> "Markup":
    """An ``<img>`` that holds ``content`` of the MIME type ``kind`` itself."""
    from markupsafe import Markup

    data = b64encode(content).decode("ascii")
    named = Markup(' class="{}"').format(css_class) if css_class else ""
    return Markup('<img{} alt="{}" src="data:{};base64,{}">').format(named, alt, kind, data)


def image_file(path: Path, alt: str) -> "Markup | None":
    """The PNG or GIF at ``path`` as an ``<img>``, small ones of class ``pixels``; None if there is no such file.

    Raises:
        ValueError: the file is neither, by its content and its name.
    """
    if not path.is_file():
        return None
    content = path.read_bytes()
    kind, start = _TYPES.get(path.suffix, ("", b"\0"))
    if not content.startswith(start):
        raise ValueError(f"{path} is not a PNG or GIF image; expected one for: {alt}")
    if kind == "image/png" and not is_whole_png(content):
        raise ValueError(f"{path} is damaged: a PNG must be whole; expected one for: {alt}")
    small = kind == "image/png" and int.from_bytes(content[16:20], "big") < _SMALL
    return image(content, kind, alt, "pixels" if small else "")
