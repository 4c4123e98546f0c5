"""A comparison as text for the terminal and as one self-contained HTML page."""

from isthmus.report.page import write_page
from isthmus.report.text import print_report

__all__ = ["print_report", "write_page"]
