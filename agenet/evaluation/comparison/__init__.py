"""The report of a finished run, and a page that compares several.

python -m agenet.report RUN RUN ... [--out=FOLDER] [--no-faces]
"""

from agenet.report.run import MAIN_FIGURES, write_report

__all__ = ["MAIN_FIGURES", "write_report"]
