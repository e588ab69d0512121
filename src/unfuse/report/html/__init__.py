"""``report.html``: runs as one page in one file; the page fetches nothing from the network.

Terminal, ``report.md`` and page print the same summaries and tables; every chart has a table of its numbers. The
package loads Altair, so import it only to write a page.
"""

from unfuse.report.html.page import report_html

__all__ = ["report_html"]
