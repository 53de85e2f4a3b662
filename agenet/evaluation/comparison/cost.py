"""The figure of accuracy against training time, of the runs compared and of published results."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from agenet.evaluation.comparison.panels import Styled, handle, panels
from agenet.evaluation.comparison.statistics import estimate, mean
from agenet.evaluation.figure_style import (
    FAINT,
    INK,
    percent_axis,
    style_axes,
    title_axes,
    widen,
)

_TIMES = {
    1: "1 s",
    10: "10 s",
    60: "1 min",
    600: "10 min",
    3600: "1 h",
    36_000: "10 h",
    86_400: "1 day",
    864_000: "10 days",
}

# Name, seconds and accuracy of a published result.
Point = tuple[str, float, float]


def cost(runs: Styled, tasks: Sequence[str], published: Mapping[str, Sequence[Point]]) -> Figure:
    """Test accuracy against training time on a logarithmic axis, a panel for each task."""
    runs = [(run, replace(style, dash="")) for run, style in runs]
    extra = [handle("o", FAINT, "reference report (its own machine and split)")]
    figure, axes = panels(len(tasks), 1, 3.9, runs, extra if any(published.values()) else [])
    for axis, task in zip(axes[0], tasks, strict=True):
        title_axes(axis, f"{task.capitalize()}: test accuracy")
        times: list[float] = []
        for name, seconds, accuracy in published.get(task, []):
            times.append(seconds)
            axis.plot(seconds, accuracy, "o", markersize=9, color=FAINT, mfc="none")
            text: dict[str, Any] = {"fontsize": 9, "color": FAINT, "ha": "center", "va": "top"}
            at = (seconds, accuracy)
            axis.annotate(name, at, (0, -8), textcoords="offset points", **text)
        for run, style in runs:
            found = estimate(run, task, "accuracy") if task in run.tasks else None
            if found is None:
                continue
            seconds = max(mean(run, "training", "seconds"), 0.1)
            times.append(seconds)
            axis.plot(seconds, found.value, style.marker, color=style.color, markersize=9)
            if found.ends:
                axis.plot([seconds] * 2, found.ends, color=style.color, linewidth=1.8, zorder=3)
        _time_axis(axis, min(times) / 1.8, max(times) * 1.8)
        percent_axis(axis.yaxis)
        axis.margins(y=0.14)
        widen(axis)
        label = "Time of one training, validation included (logarithmic)"
        axis.set_xlabel(label, fontsize=11, color=INK)
        style_axes(axis)
    return figure


def _time_axis(axis: Axes, low: float, high: float) -> None:
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    ticks = [float(seconds) for seconds in _TIMES if low <= seconds <= high]
    if len(ticks) < 2:
        ticks = np.geomspace(low * 1.3, high / 1.3, 3).tolist()
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: _time(seconds)))


def _time(seconds: float) -> str:
    if seconds in _TIMES:
        return _TIMES[int(seconds)]
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
