"""A comparison's records become tables, plots, sentences and one self-contained page."""

from immiscible_diffusion.reporting.compare.findings import Finding, findings, missing, summary
from immiscible_diffusion.reporting.compare.page import render_page, write_report
from immiscible_diffusion.reporting.compare.results import (
    Comparison,
    CouplingEntry,
    Dataset,
    Excess,
    ExcessPoint,
    Irreducible,
    LossPoint,
    PolicyEntry,
    SampleMetrics,
    Trial,
)
from immiscible_diffusion.reporting.compare.speedup import (
    Kept,
    Speedup,
    kept_by_control,
    speedup,
    speedups,
)
from immiscible_diffusion.reporting.compare.tables import speedup_markdown

__all__ = [
    "Comparison",
    "CouplingEntry",
    "Dataset",
    "Excess",
    "ExcessPoint",
    "Finding",
    "Irreducible",
    "Kept",
    "LossPoint",
    "PolicyEntry",
    "SampleMetrics",
    "Speedup",
    "Trial",
    "findings",
    "kept_by_control",
    "missing",
    "render_page",
    "speedup",
    "speedup_markdown",
    "speedups",
    "summary",
    "write_report",
]
