"""The page of an analysis: how mixed data are, what pairing does to that, and at what price."""

from immiscible_diffusion.reporting.analysis.page import render_analysis_page, write_analysis_page

__all__ = ["render_analysis_page", "write_analysis_page"]
