"""A comparison, or looks inside a model, as text for the terminal and as one self-contained HTML page."""

from isthmus.report.inside import print_looks
from isthmus.report.page import write_looks, write_page
from isthmus.report.text import print_report

__all__ = ["print_looks", "print_report", "write_looks", "write_page"]
