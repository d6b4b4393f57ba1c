"""Measured figures beside published ones, in the one form that pages and scripts show."""

import math
from dataclasses import dataclass
from typing import Any

from immiscible_diffusion.analysis.estimates import Mean

ROUNDING = 0.005  # published figures have two decimals


@dataclass(frozen=True)
class Row:
    """A figure.

    Attributes:
        label: what it is.
        measured: with its standard error (NaN where it has none).
        unit: of all figures of the row; may be empty.
        published: the paper's, or None.
        spread: the paper's own +-, if it gave one.
        expected: by theory, or None.
    """

    label: str
    measured: Mean
    unit: str = ""
    published: float | None = None
    spread: float | None = None
    expected: float | None = None

    @property
    def close(self) -> str:
        """How near measurement and publication are; empty where nothing was published."""
        if self.published is None or not math.isfinite(self.measured.value):
            return ""
        difference, error = self.measured.value - self.published, self.measured.error
        share = f" ({difference / self.published:+.0%})" if self.published else ""
        said = f"{difference:+.2g}{share}"
        if math.isnan(error):
            return said
        allowed = 2 * error + ROUNDING + (self.spread or 0)
        verdict = "within" if abs(difference) <= allowed else "outside"
        errors = "two standard errors" + (" and the published spread" if self.spread else "")
        return f"{said}, {verdict} {errors}"

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not finite is null."""
        measured = {name: _finite(value) for name, value in self.measured._asdict().items()}
        fields = {"label": self.label, "measured": measured, "published": self.published}
        more = {"published_spread": self.spread, "expected": _finite(self.expected)}
        return fields | more | {"unit": self.unit, "close": self.close}


@dataclass(frozen=True)
class Section:
    """Figures that belong together.

    Attributes:
        title: of the section.
        stands_for: the figure or table of a paper that it is to be held against.
        rows: the figures.
        note: how it was measured, and what of the paper's protocol is inferred.
        pictures: files with their captions.
    """

    title: str
    stands_for: str
    rows: tuple[Row, ...]
    note: str
    pictures: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "title": self.title,
            "stands_for": self.stands_for,
            "rows": [row.to_json() for row in self.rows],
            "pictures": [{"file": file, "caption": caption} for file, caption in self.pictures],
            "note": self.note,
        }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
