"""Records to tables, plots and pages, without torch."""
