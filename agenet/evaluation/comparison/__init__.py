"""The report of a finished run, and a page that compares several.

agenet report RUN RUN ... [--out=FOLDER] [--no-faces]
"""

from agenet.evaluation.report import MAIN_FIGURES, write_report

__all__ = ["MAIN_FIGURES", "write_report"]
