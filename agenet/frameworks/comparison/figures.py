"""Draws the figures of a comparison, with one colour and marker for each framework."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
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


def agreement(parts: Sequence[Part]) -> Figure:
    """Differences from float64 and by rounding, over training; one panel for each part."""
    figure, axes = _panels(len(parts), 5.4, 4.0)
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
    _legend(figure, {row["a"] for part in parts for row in part["rows"]}, extra)
    return figure


def results(group: Trainings) -> Figure:
    """Test accuracy after the last epoch; the values of each seed are joined by a line."""
    figure, axes = _panels(len(analysis.TASKS), 5.2, 3.8)
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
    counts = [len(part["variants"]) for part in parts]
    height = 0.35 + sum(0.32 * count + 0.85 for count in counts)
    figure = Figure(figsize=(11.0, height), facecolor="white", layout=_spacious())
    axes = figure.subplots(len(parts), 2, squeeze=False, height_ratios=counts)
    for row, part in zip(axes, parts, strict=True):
        for axis, stage in zip(row, ("training", "inference"), strict=True):
            _bars(axis, part, stage, labels=stage == "training")
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


def _spacious() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)  # inches


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Panels with sizes in inches, at most two in a row."""
    columns = min(count, 2)
    rows = -(-count // columns)
    size = (columns * width, rows * height)
    figure = Figure(figsize=size, facecolor="white", layout=_spacious())
    axes = [*figure.subplots(rows, columns, squeeze=False).flat]
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def _legend(figure: Figure, shown: set[str], extra: Sequence[Line2D]) -> None:
    handles = [
        Line2D([], [], color=color, marker=mark, label=NAMES[name], linewidth=2)
        for name, (color, mark) in _LOOKS.items()
        if name in shown
    ]
    handles += extra
    figure.legend(
        handles=handles,
        loc="outside upper left",
        # One row is wider than one panel.
        ncols=len(handles) if len(figure.axes) > 1 else 2,
        frameon=False,
        fontsize=10.5,
        labelcolor=INK,
    )
