"""A comparison's records become tables, plots, sentences and one self-contained page."""

from immiscible_diffusion.reporting.compare.page import csv_tables, render_page, write_report
from immiscible_diffusion.reporting.compare.records import Comparison
from immiscible_diffusion.reporting.compare.tables import latex_table, speedup_markdown

__all__ = ["Comparison", "csv_tables", "latex_table", "render_page", "speedup_markdown", "write_report"]
