"""The report of runs: one self-contained HTML page, and the plots as files. No torch."""

from pocketformer.report.page import write_figures, write_report

__all__ = ["write_figures", "write_report"]
