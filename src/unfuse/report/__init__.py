"""Statistics, verdict and reports of recorded runs. Imports no torch."""

from unfuse.report.comparison import Comparison, Part, compare
from unfuse.report.live import LiveView
from unfuse.report.markdown import comparison_markdown, report_markdown
from unfuse.report.summary import Summary, summarise
from unfuse.report.terminal import print_comparison, print_line, print_summary, sample_line
from unfuse.report.text import printable
from unfuse.report.trace import trace_text

__all__ = [
    "Comparison",
    "LiveView",
    "Part",
    "Summary",
    "compare",
    "comparison_markdown",
    "print_comparison",
    "print_line",
    "print_summary",
    "printable",
    "report_markdown",
    "sample_line",
    "summarise",
    "trace_text",
]
