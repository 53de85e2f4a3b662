"""The style that tells a run from the others in every figure, and panels below a legend of runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from agenet.evaluation.comparison.runs import Run
from agenet.evaluation.figure_style import (
    COLORS,
    DASHES,
    FAINT,
    INK,
    MARKERS,
    add_axes,
)


@dataclass(frozen=True)
class RunStyle:
    """Name, colour, line and marker of a run, the same in every figure.

    Attributes:
        name: of the run.
        leaks: whether subjects of its test were in its training.
        color, dash, marker: of lines and points.
    """

    name: str
    leaks: bool
    color: str
    dash: str
    marker: str

    @property
    def label(self) -> str:
        """For legends and headings."""
        return self.name + " (subjects seen in training)" * self.leaks


Styled = Sequence[tuple[Run, RunStyle]]


def style_of(number: int, run: Run) -> RunStyle:
    """The style of the run at this place, from 0."""
    return RunStyle(
        name=run.name,
        leaks=run.leaks,
        color=COLORS[number % len(COLORS)],
        dash=DASHES[number // len(COLORS) % len(DASHES)],
        marker=MARKERS[number % len(MARKERS)],
    )


def names(styles: Sequence[RunStyle]) -> str:
    """The names of the runs of these styles, for a sentence."""
    return ", ".join(style.name for style in styles)


def panels(
    columns: int,
    rows: int,
    height: float,
    runs: Styled,
    extra: Sequence[Line2D] = (),
    *,
    width: float = 5.1,
    widths: Sequence[float] = (),
    gap: float = 0.75,
) -> tuple[Figure, list[list[Axes]]]:
    """Empty panels [rows][columns] of sizes in inches, below a legend of runs and `extra`."""
    widths = widths or [width] * columns
    left, below, between, heading = 0.75, 0.62, 0.72, 0.35
    handles = [handle(s.marker, s.color, _escape(s.label), s.dash) for _, s in runs]
    handles += extra
    # About 12 letters of 10.5 points go into an inch, and a line and a space take 0.7.
    longest = 0.7 + max(len(str(h.get_label())) for h in handles) / 12
    total = max(left + sum(widths) + gap * (columns - 1) + 0.15, longest)
    per_line = max(1, min(len(handles), int(total / longest)))
    head = 0.12 + 0.26 * -(-len(handles) // per_line)
    tall = head + rows * (heading + height) + (rows - 1) * (between - heading) + below
    figure = Figure(figsize=(total, tall), facecolor="white")
    starts = (left + np.cumsum([0.0, *(w + gap for w in widths[:-1])])).tolist()
    axes = []
    for row in range(rows):
        bottom = tall - head - heading - height - row * (height + between)
        places = zip(starts, widths, strict=True)
        axes.append([add_axes(figure, x, bottom, w, height) for x, w in places])
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=per_line,
        frameon=False,
        fontsize=10.5,
        labelcolor=INK,
        borderaxespad=0.1,
        columnspacing=1.4,
    )
    return figure, axes


def handle(marker: str, color: str, label: str, dash: str = "") -> Line2D:
    """A line of a legend; hollow where it is faint."""
    hollow: dict[str, Any] = {"markerfacecolor": "none"} if color == FAINT else {}
    line: dict[str, Any] = {"linestyle": dash or "none", "linewidth": 2.2, "markersize": 7}
    return Line2D([], [], color=color, marker=marker, label=label, **line, **hollow)


def _escape(text: str) -> str:
    """Between two dollars Matplotlib would see a formula."""
    return text.replace("$", r"\$")
