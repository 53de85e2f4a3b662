"""Draws the figures of a comparison, with one colour and marker for each framework."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from agenet.evaluation.figure_style import (
    COLORS,
    FAINT,
    INK,
    MARKERS,
    percent_axis,
    style_axes,
    title_axes,
    widen,
)
from agenet.frameworks.comparison import analysis
from agenet.frameworks.comparison.analysis import NAMES, Part, Trainings
from agenet.frameworks.comparison.engine import NETWORKS

_LOOKS = {n: (c, m) for n, c, m in zip(NAMES, COLORS, MARKERS, strict=False)}
_LINES: dict[str, Any] = {"exact": "-", "rounding": ":"}
# In inches.
_LEFT, _RIGHT, _GAP, _BELOW, _LEGEND_ROW = 0.8, 0.2, 0.8, 0.6, 0.25


def agreement(parts: Sequence[Part]) -> Figure:
    """Differences from float64 and by rounding, over training; one panel for each part."""
    rows = 1 if len(parts) > 1 else 2  # One row of the legend is wider than one panel.
    figure, axes = _panels(len(parts), 4.6, 3.2, head=0.5 + rows * _LEGEND_ROW)
    for axis, part in zip(axes, parts, strict=True):
        title_axes(axis, f"{NETWORKS[part['model']]}, {analysis.OPTIMIZERS[part['optimizer']]}")
        steps = list(part["rows"][0]["steps"])
        labels = ["logits", "gradients", *map(analysis.steps_text, steps)]
        for row in part["rows"]:
            if row["kind"] not in _LINES or row["dtype"] != "float32":
                continue
            values = [*analysis.figures_of(row).values()]
            color, mark = _LOOKS[row["a"]]
            style: dict[str, Any] = {"color": color, "marker": mark, "markersize": 5}
            (line,) = axis.plot(range(len(values)), np.maximum(values, 1e-9), **style)
            line.set_linestyle(_LINES[row["kind"]])
        axis.axhline(analysis.CONCLUSIVE / analysis.ROUNDING, color=FAINT, linewidth=0.8)
        axis.set_yscale("log")
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set_xticks(range(len(labels)), labels, fontsize=9.5)
        style_axes(axis)
    axes[0].set_ylabel("relative difference", color=INK, fontsize=10.5)
    extra = [
        Line2D([], [], color=FAINT, linestyle="-", label="from float64"),
        Line2D([], [], color=FAINT, linestyle=":", label="by rounding alone"),
    ]
    _legend(figure, {row["a"] for part in parts for row in part["rows"]}, extra, rows)
    return figure


def results(group: Trainings) -> Figure:
    """Test accuracy after the last epoch; the values of each seed are joined by a line."""
    figure, axes = _panels(len(analysis.TASKS), 4.4, 3.0, head=0.4)
    names = list(group)
    for axis, task in zip(axes, analysis.TASKS, strict=True):
        title_axes(axis, f"{task.capitalize()}: test accuracy")
        for seed in sorted({seed for of_seed in group.values() for seed in of_seed}):
            points = [
                (at, group[name][seed]["epochs"][-1][f"{task}_accuracy"])
                for at, name in enumerate(names)
                if seed in group[name]
            ]
            axis.plot(*zip(*points, strict=True), color=FAINT, linewidth=1, zorder=1)
            for at, value in points:
                color, mark = _LOOKS[names[at]]
                axis.plot(at, value, mark, color=color, markersize=7, zorder=3)
        for at, name in enumerate(names):
            values = [p["epochs"][-1][f"{task}_accuracy"] for p in group[name].values()]
            mean = [float(np.mean(values))] * 2
            axis.plot([at - 0.22, at + 0.22], mean, color=_LOOKS[name][0], linewidth=3, zorder=2)
        axis.set_xticks(range(len(names)), [NAMES[name] for name in names], fontsize=11)
        axis.set_xlim(-0.5, len(names) - 0.5)
        widen(axis)
        percent_axis(axis.yaxis)
        style_axes(axis)
    return figure


def cost(parts: Sequence[Part]) -> Figure:
    """Images per second of every variant; one row of panels for each network."""
    heights = [0.32 * len(part["variants"]) for part in parts]
    width, left, between = 11.0, 2.3, 0.85
    total = sum(heights) + between * len(parts) + 0.35
    figure = Figure(figsize=(width, total), facecolor="white")
    panel = (width - left - 0.9 - 0.6) / 2
    top = 0.45
    for part, height in zip(parts, heights, strict=True):
        for column, stage in enumerate(("training", "inference")):
            x = left + column * (panel + 0.75)
            bounds = (x / width, 1 - (top + height) / total, panel / width, height / total)
            axis = figure.add_axes(bounds)
            _bars(axis, part, stage, labels=column == 0)
        top += height + between
    return figure


def _bars(axis: Axes, part: Part, stage: str, labels: bool) -> None:
    title_axes(axis, f"{NETWORKS[part['model']]}, {part['size']} px: {stage}")
    names = []
    for at, figures in enumerate(part["variants"].values()):
        names.append(f"{NAMES[figures['framework']]}, {figures['variant']}")
        value = analysis.rate(figures, stage)
        if value is None:
            axis.text(0, at, " failed", va="center", color=FAINT, fontsize=9.5)
            continue
        color, _ = _LOOKS[figures["framework"]]
        axis.barh(
            at, value, 0.72, color=color, alpha=0.9 if figures["variant"] == "default" else 0.6
        )
        turns = figures[stage]
        if len(turns) > 1:
            axis.plot([min(turns), max(turns)], [at, at], color=INK, linewidth=1.2)
        at_end = (max(value, *turns), at)
        style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "color": INK}
        axis.annotate(analysis.speed(value), at_end, (5, 0), fontsize=10, **style)
    axis.set_yticks(range(len(names)), names if labels else [""] * len(names), fontsize=10)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.margins(x=0.14)
    axis.set_xlim(left=0)
    style_axes(axis, "x")


def _panels(count: int, width: float, height: float, head: float) -> tuple[Figure, list[Axes]]:
    """Panels with sizes in inches, at most two in a row, that start `head` inches from the top."""
    columns = min(count, 2)
    rows = -(-count // columns)
    total = _LEFT + columns * width + (columns - 1) * _GAP + _RIGHT
    tall = head + rows * height + (rows - 1) * (_BELOW + 0.35) + _BELOW
    figure = Figure(figsize=(total, tall), facecolor="white")
    axes = []
    for number in range(count):
        row, column = divmod(number, columns)
        x = _LEFT + column * (width + _GAP)
        y = tall - head - (row + 1) * height - row * (_BELOW + 0.35)
        axes.append(figure.add_axes((x / total, y / tall, width / total, height / tall)))
    return figure, axes


def _legend(figure: Figure, shown: set[str], extra: Sequence[Line2D], rows: int) -> None:
    """Lists the frameworks shown, and the extra handles after or, with two rows, below them."""
    handles = [
        Line2D([], [], color=color, marker=mark, label=NAMES[name], linewidth=2)
        for name, (color, mark) in _LOOKS.items()
        if name in shown
    ]
    lines = [[*handles, *extra]] if rows == 1 else [handles, extra]
    for number, line in enumerate(lines):
        figure.legend(
            handles=line,
            loc="upper left",
            bbox_to_anchor=(0.0, 1.0 - number * _LEGEND_ROW / figure.get_figheight()),
            ncols=len(line),
            frameon=False,
            fontsize=10.5,
            labelcolor=INK,
        )
