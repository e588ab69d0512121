"""``report.html``: runs as one page in one file, which asks the network for nothing.

Everything it says comes from the same summaries as the terminal and ``report.md``; what is drawn has a table of its
numbers. Loads Altair, so import it where a page is written.
"""

from unfuse.report.html.page import report_html

__all__ = ["report_html"]
