"""The figures of several runs on the same axes: curves, calibration, subgroups and differences."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from agenet.evaluation.comparison.panels import RunStyle, Styled, handle, panels
from agenet.evaluation.comparison.runs import Run
from agenet.evaluation.comparison.statistics import (
    Bar,
    Difference,
    confusion,
    estimate,
    reliability,
    subgroups,
    training_mean,
)
from agenet.evaluation.figure_style import (
    FAINT,
    INK,
    MIN_IN_BIN,
    add_axes,
    percent_axis,
    series,
    style_axes,
    title_axes,
    widen,
    write,
)
from agenet.evaluation.figures import draw_confusion
from agenet.evaluation.metrics import SUBGROUPS
from agenet.evaluation.summary import percent, signed, tested_epoch

MAX_WIDTH = 11.5  # inches of panels side by side
_SECONDS = (1, 10, 60, 600, 3600, 36_000, 86_400, 864_000)
_NAMES = ("1 s", "10 s", "1 min", "10 min", "1 h", "10 h", "1 day", "10 days")
_TIMES = dict(zip(_SECONDS, _NAMES, strict=True))

# Name, seconds and accuracy of a published result.
Point = tuple[str, float, float]


def curves(runs: Styled, tasks: Sequence[str]) -> Figure | None:
    """Validation loss and accuracy of each task over epochs; None if no run has any.

    Folds are drawn thinly, and their mean; a ring marks the state that was tested.
    """
    logged = {name for run, _ in runs for test in run.tests for row in test.history for name in row}
    tasks = [task for task in tasks if f"validation/{task}_loss" in logged]
    if not tasks:
        return None
    figure, axes = panels(len(tasks), 2, 3.1, runs)
    for column, task in enumerate(tasks):
        for row, name in enumerate(("loss", "accuracy")):
            axis = axes[row][column]
            title_axes(axis, f"{task.capitalize()}: validation {name}")
            for run, style in runs:
                _curve(axis, run, style, f"validation/{task}_{name}")
            if name == "accuracy":
                percent_axis(axis.yaxis)
                widen(axis)
                axis.set_xlabel("Epoch", color=INK, fontsize=11)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
            axis.set_xlim(left=0)
            style_axes(axis)
    return figure


def _curve(axis: Axes, run: Run, style: RunStyle, name: str) -> None:
    """Draws a metric over epochs, if the run has logged it."""
    every = [found for test in run.tests if (found := series(test.history, name))[0]]
    if not every:
        return
    line: dict[str, Any] = {"color": style.color, "linestyle": style.dash}
    if run.is_folds:
        for epochs, values in every:
            axis.plot(epochs, values, linewidth=0.8, alpha=0.4, **line)
    length = min(len(values) for _, values in every)
    means = [np.mean([found[i][:length] for found in every], axis=0) for i in (0, 1)]
    axis.plot(*means, linewidth=2.2, marker=style.marker, markersize=5, **line)
    if not run.is_folds:
        nearest = int(np.abs(means[0] - tested_epoch(run.first["training"])).argmin())
        ring: dict[str, Any] = {"markersize": 12, "markerfacecolor": "none", "markeredgewidth": 1.8}
        axis.plot(means[0][nearest], means[1][nearest], "o", markeredgecolor=style.color, **ring)


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
            seconds = max(training_mean(run, "seconds"), 0.1)
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


def calibration(runs: Styled, task: str) -> Figure | None:
    """Accuracy against the probability of the predicted class; None if no report has the bins."""
    found = [(run, style, reliability(run, task)) for run, style in runs if task in run.tasks]
    drawn = [(run, style) for run, style, bins in found if bins is not None]
    if not drawn:
        return None
    figure, axes = panels(1, 1, 4.6, drawn, width=5.6)
    axis = axes[0][0]
    axis.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, linestyle=(0, (2, 3)))
    for _, style, bins in found:
        if bins is None:
            continue
        count, confidence, accuracy = bins
        enough = count >= MIN_IN_BIN
        line: dict[str, Any] = {"color": style.color, "linestyle": style.dash}
        axis.plot(confidence[enough], accuracy[enough], linewidth=1.6, **line)
        area = 12 + 380 * count / count.sum()
        point: dict[str, Any] = {"color": style.color, "marker": style.marker, "alpha": 0.85}
        axis.scatter(confidence, accuracy, s=area, **point)
    percent_axis(axis.xaxis)
    percent_axis(axis.yaxis)
    axis.set_xlim(0, 1.03)
    axis.set_ylim(0, 1.03)
    axis.set_xlabel("Probability of the predicted class", color=INK, fontsize=11)
    title_axes(axis, f"{task.capitalize()}: accuracy")
    style_axes(axis)
    return figure


def bars(runs: Styled, task: str) -> list[Figure]:
    """Accuracy in every subgroup, the runs side by side; several figures where one is too wide."""
    shown = [(run, style) for run, style in runs if task in run.tasks]
    slot = max(0.62, 0.17 * len(shown) + 0.2)
    figures: list[dict[str, float]] = []  # of each the divisions, with the widths of their panels
    found = {d: [subgroups(run, task, d) for run, _ in shown] for d in SUBGROUPS}
    for division, of_runs in found.items():
        width = slot * len(_names(division, of_runs)) + 0.25
        if not any(of_runs):
            continue
        if figures and sum(figures[-1].values()) + width < MAX_WIDTH:
            figures[-1][division] = width
        else:
            figures.append({division: width})
    return [_bars(shown, task, found, widths) for widths in figures]


def _names(division: str, of_runs: Sequence[Mapping[str, Bar]]) -> list[str]:
    """The groups of a division that occur in any run."""
    return [name for name in SUBGROUPS[division] if any(name in groups for groups in of_runs)]


def _bars(
    shown: Styled,
    task: str,
    found: Mapping[str, Sequence[Mapping[str, Bar]]],
    widths: Mapping[str, float],
) -> Figure:
    """The divisions that have a width, each in a panel."""
    figure, axes = panels(len(widths), 1, 3.3, shown, widths=list(widths.values()), gap=0.3)
    thick = 0.84 / len(shown)
    for axis, division in zip(axes[0], widths, strict=True):
        names = _names(division, found[division])
        for place, ((_, style), of_run) in enumerate(zip(shown, found[division], strict=True)):
            for at, name in enumerate(names):
                if (bar := of_run.get(name)) is None:
                    continue
                x = at + (place - (len(shown) - 1) / 2) * thick
                axis.bar(x, bar.accuracy, 0.9 * thick, color=style.color, alpha=0.85)
                if bar.interval:
                    axis.plot([x, x], bar.interval, color=INK, linewidth=1.2)
                dots: dict[str, Any] = {"color": INK, "markersize": 2.6, "linestyle": ""}
                axis.plot([x] * len(bar.folds), bar.folds, marker="o", **dots)
        title_axes(axis, "By true class" if division == task else f"By {division}")
        labels = [name.replace("_", " ").replace(" ", "\n") for name in names]
        axis.set_xticks(range(len(names)), labels, fontsize=10)
        axis.set_xlim(-0.6, len(names) - 0.4)
        axis.set_ylim(0, 1)
        percent_axis(axis.yaxis)
        style_axes(axis)
        axis.tick_params(axis="x", length=0)
        axis.tick_params(labelleft=axis is axes[0][0])
    return figure


def matrix(run: Run, style: RunStyle, task: str) -> Figure:
    """The confusion matrix of a run; counts of folds are pooled."""
    counts = confusion(run, task)
    label = style.label if len(style.label) < 40 else style.label[:39] + "…"
    accuracy = percent(counts.trace() / max(counts.sum(), 1))
    folds = f", {len(run.tests)} folds pooled" if run.is_folds else ""
    return draw_confusion(task, counts, label, f"{accuracy} % accuracy{folds}")


def forest(pairs: Sequence[Difference], styles: Mapping[int, RunStyle], task: str) -> Figure:
    """Difference in accuracy of every pair of runs, with its interval.

    Args:
        pairs: not empty.
        styles: of the runs, by their id().
        task: "age" or "gender".
    """
    bar, width, left, right, below = 0.5, 9.4, 2.6, 1.5, 0.58
    height = bar * len(pairs)
    figure = Figure(figsize=(width, below + height + 0.12), facecolor="white")
    axis = add_axes(figure, left, below, width - left - right, height)
    axis.axvline(0, color=FAINT, linewidth=1.2, linestyle=(0, (2, 3)))
    for at, pair in enumerate(pairs):
        first, second = styles[id(pair.first)], styles[id(pair.second)]
        color = (second if pair.accuracy.value >= 0 else first).color
        if pair.accuracy.interval:
            ends = [100 * end for end in pair.accuracy.interval]
            axis.plot(ends, [at, at], color=color, linewidth=2.4, solid_capstyle="butt")
        axis.plot(100 * pair.accuracy.value, at, "o", color=color, markersize=8)
        y = below + height * (1 - (at + 0.5) / len(pairs))
        top = below + height + 0.12
        for line, (word, style) in enumerate((("", second), ("minus ", first))):
            text = f"{word}{style.name}"
            text = text if len(text) < 34 else text[:33] + "…"
            write(figure, 0.1, top - y - 0.03 + 0.17 * line, text, fontsize=9.5, color=INK)
        text = f"{signed(100 * pair.accuracy.value)} points"
        write(figure, width - right + 0.15, top - y + 0.04, text, fontsize=10.5, color=INK)
    axis.set_yticks(range(len(pairs)), [""] * len(pairs))
    axis.set_ylim(len(pairs) - 0.5, -0.5)
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, -1), max(high, 1))
    axis.set_xlabel(f"Difference in {task} accuracy, percentage points", color=INK, fontsize=11)
    style_axes(axis, "x")
    return figure
