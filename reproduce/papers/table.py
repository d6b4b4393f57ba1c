"""Measured figures beside published ones: the rows, sections and tables of the report."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from immiscible_diffusion.analysis.estimates import Mean

ROUNDING = 0.005  # published figures have two decimals


@dataclass(frozen=True)
class Row:
    """One figure: ``measured`` with its standard error (NaN where it has none).

    ``published`` is the paper's figure and ``spread`` the paper's own +-; ``expected`` follows from
    theory. None where there is none.
    """

    label: str
    measured: Mean
    unit: str = ""
    published: float | None = None
    spread: float | None = None
    expected: float | None = None

    @property
    def verdict(self) -> str:
        """How near measurement and publication are; empty where nothing was published."""
        if self.published is None:
            return ""
        difference, error = self.measured.value - self.published, self.measured.error
        text = f"{difference:+.2g} ({difference / self.published:+.0%})"
        if math.isnan(error):
            return text
        allowed = 2 * error + ROUNDING + (self.spread or 0)
        side = "within" if abs(difference) <= allowed else "outside"
        errors = "two standard errors" + (" and the published spread" if self.spread else "")
        return f"{text}, {side} {errors}"

    @property
    def cells(self) -> tuple[str, ...]:
        """Its cells of a markdown table: label, measured, expected, published, verdict."""
        value, error = self.measured
        measured = f"{value:.4g}" + ("" if math.isnan(error) else f" ± {error:.2g}")
        expected = "" if self.expected is None else f"{self.expected:.4g}"
        published = "" if self.published is None else f"{self.published:g}"
        published += "" if self.spread is None else f" ± {self.spread:g}"
        unit = f" ({self.unit})" if self.unit else ""
        return (self.label + unit, measured, expected, published, self.verdict)

    def to_json(self) -> dict[str, Any]:
        """Plain values; None for an error that is not known."""
        value, error = self.measured
        measured = {"value": value, "error": None if math.isnan(error) else error}
        return dataclasses.asdict(self) | {"measured": measured, "verdict": self.verdict}


@dataclass(frozen=True)
class Section:
    """Figures that belong together.

    Attributes:
        title: of the section.
        stands_for: the figure or table of a paper that it is compared with.
        rows: the figures.
        note: how they are measured, and what of the paper's protocol is inferred.
        images: files, relative to the report's folder, with their captions.
    """

    title: str
    stands_for: str
    rows: Sequence[Row]
    note: str
    images: Sequence[tuple[str, str]] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self) | {"rows": [row.to_json() for row in self.rows]}

    def to_markdown(self) -> str:
        """Heading, table, note and images."""
        head = ("", "measured", "expected", "published", "measured - published")
        table = markdown_table(head, [row.cells for row in self.rows])
        images = [f"![{caption}]({file})" for file, caption in self.images]
        parts = [f"## {self.title}", f"Stands for {self.stands_for}.", table, self.note, *images]
        return "\n\n".join(parts) + "\n"


def published_table(sections: Iterable[Section]) -> str:
    """Every figure that has a published one, as one markdown table."""
    rows = [
        (f"{section.title}: {label}", section.stands_for, measured, published, verdict)
        for section in sections
        for label, measured, _, published, verdict in (row.cells for row in section.rows)
        if published
    ]
    head = ("", "stands for", "measured", "published", "measured - published")
    return markdown_table(head, rows) if rows else "No figure was published for data like these."


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """``rows`` below ``head``."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])
