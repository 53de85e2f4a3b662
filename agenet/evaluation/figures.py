"""The figures of a run: learning curves, confusion matrices, calibration and subgroups.

All take `subtitle`, which names model and data set, and `notice`, what readers must know about the
data or "". Those of a task, "age" or "gender", take its `metrics`, the result of
`agenet.evaluation.metrics.report_metrics`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from agenet.evaluation.figure_style import (
    EDGE,
    INK,
    MARGIN,
    MIN_IN_BIN,
    SHADES,
    add_axes,
    percent_axis,
    series,
    style_axes,
    text_color_on,
    title_axes,
    titled_figure,
)
from agenet.evaluation.summary import percent, tested_epoch
from agenet.labels import TASK_CLASSES

BLUE, GREEN, ORANGE = "#0072B2", "#009E73", "#D55E00"
CURVES: dict[str, dict[str, Any]] = {
    "training": {"color": ORANGE, "linewidth": 1.0, "marker": "."},
    "validation": {"color": BLUE, "linewidth": 2.0, "marker": "o", "markersize": 4.5},
    "validation, 1-off": {"color": GREEN, "linestyle": "--", "marker": "D", "markersize": 4},
}


def learning_curves(
    history: Sequence[Mapping[str, Any]],
    tasks: Sequence[str],
    training: Mapping[str, Any],
    subtitle: str,
    notice: str,
) -> Figure:
    """Loss and accuracies of training and validation over epochs, with the tested state marked.

    Where the error in years was measured it has a panel, too.

    Args:
        history: logged rows, with `step`, `epoch` and any of the metrics.
        tasks: each has a panel for its accuracy, next to that for the loss.
        training: `best_step`, `steps` and `epochs` of the report.
        subtitle, notice: see above.
    """
    has_years = "age" in tasks and any("validation/age_mae" in row for row in history)
    panels = 1 + len(tasks) + has_years
    panel_width, panel_height, left, below = 3.5, 2.75, 0.62, 0.62
    width = panels * (panel_width + left) + 0.2
    figure, _ = titled_figure(
        width, below + panel_height + 0.3, "Learning curves", subtitle, notice
    )
    axes = [
        add_axes(figure, left + panel * (panel_width + left), below, panel_width, panel_height)
        for panel in range(panels)
    ]
    curves = {"training": "train/loss", "validation": "validation/loss"}
    _curves(axes[0], history, curves, tested_epoch(training))
    title_axes(axes[0], "Loss" + (f" ({' + '.join(tasks)})" if len(tasks) > 1 else ""))
    axes[0].set_ylim(0, None)
    if has_years:
        _curves(axes[-1], history, {"validation": "validation/age_mae"}, tested_epoch(training))
        title_axes(axes[-1], "Mean age error, years")
        axes[-1].set_ylim(0, None)
    for axis, task in zip(axes[1 : 1 + len(tasks)], tasks, strict=True):
        curves = {
            "training": f"train/{task}_accuracy",
            "validation": f"validation/{task}_accuracy",
            "validation, 1-off": f"validation/{task}_one_off",
        }
        _curves(axis, history, curves, tested_epoch(training))
        title_axes(axis, f"{task.capitalize()} accuracy")
        axis.set_ylim(0, 1)
        percent_axis(axis.yaxis)
    return figure


def _curves(
    axis: Axes, history: Sequence[Mapping[str, Any]], curves: Mapping[str, str], tested: float
) -> None:
    """Draws metrics of the history over epochs, with a legend and the tested epoch."""
    longest = tested
    for label, name in curves.items():
        epochs, values = series(history, name)
        if epochs:
            # A single point is no line: it needs its marker.
            marker = "" if label == "training" and len(epochs) > 1 else CURVES[label]["marker"]
            axis.plot(epochs, values, label=label, **CURVES[label] | {"marker": marker})
            longest = max(longest, *epochs)
    axis.axvline(tested, color=INK, linewidth=1, linestyle=":", label="tested state", zorder=1)
    axis.set_xlim(0, 1.03 * longest or 1)
    axis.set_xlabel("Epoch", color=INK)
    axis.xaxis.set_major_locator(MaxNLocator(integer=longest >= 2, nbins=8))
    style_axes(axis)
    axis.legend(frameon=False, fontsize=9, labelcolor=INK)


def confusion_matrix(task: str, metrics: Mapping[str, Any], subtitle: str, notice: str) -> Figure:
    """Confusion matrix with accuracies in its title, see `draw_confusion`."""
    title = f"{task.capitalize()}: {percent(metrics['accuracy'])} % accuracy"
    if "one_off" in metrics:
        title += f", {percent(metrics['one_off'])} % 1-off"
    return draw_confusion(task, np.array(metrics["confusion"]), title, subtitle, notice)


def draw_confusion(
    task: str, counts: np.ndarray, title: str, subtitle: str, notice: str = ""
) -> Figure:
    """Counts [C, C] of every pair of true (rows) and predicted class, and shares of each row."""
    names = TASK_CLASSES[task]
    support = counts.sum(axis=1)
    shares = counts / np.maximum(support, 1)[:, None]
    side, left, below = max(0.6 * len(names), 2.6), 1.3, 0.7
    width = left + side + MARGIN
    figure, _ = titled_figure(width, below + side + 0.05, title, subtitle, notice)
    axis = add_axes(figure, left, below, side, side)
    edges = np.arange(len(names) + 1) - 0.5
    axis.pcolormesh(edges, edges, shares, cmap=SHADES, vmin=0, vmax=1, edgecolor="#C8CCD2", lw=0.6)
    axis.set_aspect("equal")
    axis.invert_yaxis()
    place: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center"}
    for (row, column), count in np.ndenumerate(counts):
        if count:
            share, at = shares[row, column], (column, row)
            color = text_color_on(SHADES(share))
            weight = "bold" if row == column else "normal"
            text = f"{percent(share, 0)} %"
            axis.annotate(text, at, (0, 6), size=10.5, color=color, weight=weight, **place)
            axis.annotate(f"{count:,}", at, (0, -8), size=8, color=color, **place)
    axis.set_xticks(range(len(names)), names, fontsize=10)
    rows = [f"{name}\n{total:,} faces" for name, total in zip(names, support, strict=True)]
    axis.set_yticks(range(len(names)), rows, fontsize=9)
    axis.tick_params(length=0, labelcolor=INK)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("Predicted", fontsize=11, color=INK, labelpad=6)
    axis.set_ylabel("True", fontsize=11, color=INK, labelpad=6)
    return figure


def reliability_diagram(
    task: str, metrics: Mapping[str, Any], subtitle: str, notice: str
) -> Figure:
    """Accuracy against the probability of the predicted class, and how many faces have which.

    Bars are bins; each dot stands at the mean probability of its bin. The line leaves out bins of
    fewer than `MIN_IN_BIN` faces, whose means may be anything.
    """
    bins = metrics["reliability"]
    counts = np.array(bins["count"])
    edges = np.linspace(0, 1, len(counts) + 1)
    filled = np.flatnonzero(counts)
    confidence = np.array([bins["confidence"][i] for i in filled])
    accuracy = np.array([bins["accuracy"][i] for i in filled])
    title = f"{task.capitalize()}: {percent(metrics['calibration_error'])} % calibration error"
    subtitle = f"{subtitle}; {len(counts)} equal bins, mean error weighted by faces"
    side, low, gap, left, below, right = 3.6, 0.9, 0.2, 0.9, 0.62, 0.4
    width = left + side + right
    figure, _ = titled_figure(width, below + low + gap + side + 0.1, title, subtitle, notice)
    axis = add_axes(figure, left, below + low + gap, side, side)
    histogram = add_axes(figure, left, below, side, low)

    axis.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":", label="perfect calibration")
    widths = np.diff(edges)[filled]
    axis.bar(edges[filled] + widths / 2, accuracy, 0.96 * widths, color=BLUE, alpha=0.3)
    axis.plot(confidence, accuracy, "o", color=BLUE, markersize=4.5, label="mean of a bin")
    enough = counts[filled] >= MIN_IN_BIN
    label = f"bins of {MIN_IN_BIN} faces or more"
    axis.plot(confidence[enough], accuracy[enough], color=BLUE, label=label)
    axis.set_ylim(0, 1)
    axis.set_ylabel("Accuracy", color=INK)
    percent_axis(axis.yaxis)
    axis.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left")
    axis.tick_params(labelbottom=False)
    histogram.bar(edges[:-1], counts, np.diff(edges), align="edge", color=EDGE)
    histogram.set_ylabel("Faces", color=INK)
    histogram.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    histogram.set_xlabel("Probability of the predicted class", color=INK)
    percent_axis(histogram.xaxis)
    for panel in (axis, histogram):
        panel.set_xlim(0, 1)
        style_axes(panel)
    return figure


def subgroup_bars(task: str, metrics: Mapping[str, Any], subtitle: str, notice: str) -> Figure:
    """Accuracy in every subgroup with its interval, below the accuracy on all faces."""
    rows: list[tuple[float, str, Mapping[str, Any]]] = [(0.0, "all faces", metrics)]
    for groups in metrics["subgroups"].values():
        # Half a bar of space between one division and the next.
        rows += [(rows[-1][0] + 1.5 + i, g["name"], g) for i, g in enumerate(groups)]
    bar, side, left, right, below = 0.27, 3.4, 1.35, 2.8, 0.62
    width, body = left + side + right, bar * (rows[-1][0] + 1)
    title = f"{task.capitalize()}: accuracy by subgroup"
    subtitle = f"{subtitle}; lines: 95 % intervals by subject"
    figure, _ = titled_figure(width, below + body + 0.1, title, subtitle, notice)
    axis = add_axes(figure, left, below, side, body)
    for at, _, group in rows:
        share, interval = group["accuracy"], group["intervals"]["accuracy"]
        axis.barh(at, share, 0.72, color=BLUE, alpha=0.7 if group is metrics else 0.35)
        if interval:
            axis.plot(interval, [at, at], color=INK, linewidth=1.3, marker="|", markersize=6)
        text = f"{percent(share)} %   {group['count']:,} faces, {group['subjects']:,} subjects"
        text += "" if interval else ", no interval"
        style: dict[str, Any] = {"fontsize": 8.5, "color": INK, "va": "center"}
        axis.annotate(text, (1, at), (8, 0), textcoords="offset points", **style)
    axis.axvline(metrics["accuracy"], color=INK, linewidth=1, linestyle=":", zorder=0)
    axis.set_yticks([at for at, *_ in rows], [name for _, name, _ in rows], fontsize=9)
    axis.set_ylim(rows[-1][0] + 0.5, -0.5)
    axis.set_xlim(0, 1)
    percent_axis(axis.xaxis)
    axis.set_xlabel("Accuracy", color=INK)
    style_axes(axis, "x")
    return figure
