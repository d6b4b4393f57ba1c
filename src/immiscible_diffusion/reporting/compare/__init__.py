"""A comparison's records become tables, plots, sentences and one self-contained page."""

from immiscible_diffusion.reporting.compare.page import csv_tables, render_page, write_report
from immiscible_diffusion.reporting.compare.records import (
    Comparison,
    CouplingEntry,
    Dataset,
    Excess,
    ExcessPoint,
    Floor,
    Irreducible,
    LossPoint,
    PolicyEntry,
    SampleMetrics,
    Trial,
)
from immiscible_diffusion.reporting.compare.speedup import Speedup, Verdict, speedup, speedups
from immiscible_diffusion.reporting.compare.summary import Finding, findings, missing, summary
from immiscible_diffusion.reporting.compare.tables import latex_table, speedup_markdown

__all__ = [
    "Comparison",
    "CouplingEntry",
    "Dataset",
    "Excess",
    "ExcessPoint",
    "Finding",
    "Floor",
    "Irreducible",
    "LossPoint",
    "PolicyEntry",
    "SampleMetrics",
    "Speedup",
    "Trial",
    "Verdict",
    "csv_tables",
    "findings",
    "latex_table",
    "missing",
    "render_page",
    "speedup",
    "speedup_markdown",
    "speedups",
    "summary",
    "write_report",
]
