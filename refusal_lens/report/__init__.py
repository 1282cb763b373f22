"""A run as one offline page.

Knows how a run is told to a reader. Reads what other stages wrote, and computes no scores.
"""

from refusal_lens.report.page import build_report

__all__ = ["build_report"]
