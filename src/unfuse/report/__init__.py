"""From records to statistics, a verdict and something to read. Imports no torch."""

from unfuse.report.markdown import report_markdown
from unfuse.report.summary import Summary, summarise
from unfuse.report.terminal import print_line, print_summary, sample_line

__all__ = ["Summary", "print_line", "print_summary", "report_markdown", "sample_line", "summarise"]
