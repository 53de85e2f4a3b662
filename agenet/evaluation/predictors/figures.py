"""Figures of an evaluation: subgroups of every predictor, calibration, and errors by true age."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from agenet.evaluation.figure_style import (
    COLORS,
    EDGE,
    FAINT,
    INK,
    MARGIN,
    MARKERS,
    MIN_IN_BIN,
    add_axes,
    percent_axis,
    short_text,
    style_axes,
    titled_figure,
)
from agenet.evaluation.predictors.measures import METRICS, Estimate, Measured

_BAND = 10  # years
_MOST_LETTERS = 40  # of a name in a legend


def legend_name(name: str) -> str:
    """A name for a legend."""
    # Matplotlib leaves out what starts with "_".
    return short_text(name, _MOST_LETTERS).lstrip("_") or "–"


def subgroup_dots(
    metric: str, measured: Sequence[Measured], subtitle: str, notice: str
) -> Figure | None:
    """A metric with its interval in every subgroup, for each predictor; None if nobody has it."""
    shown = [(i, m) for i, m in enumerate(measured) if metric in m.estimates]
    if not shown:
        return None
    about = METRICS[metric]
    rows: list[tuple[float, str, str, str]] = [(0.0, "all faces", "", "")]
    for group in measured[0].groups:
        step = 1.0 if rows[-1][2] == group.division else 1.6
        label = f"{group.name}  ({group.faces:,})"
        rows.append((rows[-1][0] + step, label, group.division, group.name))
    line = max(0.27, 0.15 * len(shown) + 0.1)
    left, side, below = 2.1, 5.2, 0.62
    legend = 0.24 * len(shown) if len(shown) > 1 else 0.0
    body = line * (rows[-1][0] + 1)
    title = f"{about.heading.removesuffix(' %')} by subgroup"
    text = f"{subtitle}; in brackets: faces; lines: 95 % intervals by subject"
    height = below + body + legend + 0.15
    figure, _ = titled_figure(left + side + MARGIN, height, title, text, notice)
    axis = add_axes(figure, left, below, side, body)
    factor = 1 if about.factor == 100 else about.factor
    for place, (index, each) in enumerate(shown):
        found = {(group.division, group.name): group.estimates for group in each.groups}
        shift = (place - (len(shown) - 1) / 2) * 0.62 / max(len(shown), 2)
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        label = legend_name(each.predictions.name)
        for at, _, division, name in rows:
            values = each.estimates if not division else found[division, name]
            estimate: Estimate | None = values.get(metric)
            if estimate is None:
                continue
            if estimate.interval:
                ends = [factor * end for end in estimate.interval]
                axis.plot(ends, [at + shift] * 2, color=color, linewidth=1.6, alpha=0.75)
            style: dict[str, Any] = {"color": color, "marker": marker, "linestyle": "none"}
            if not estimate.interval:  # Hollow where there is none.
                style["markerfacecolor"] = "none"
            axis.plot(factor * estimate.value, at + shift, markersize=5.5, **style)
        axis.plot([], [], color=color, marker=marker, label=label, linewidth=1.6)
    axis.set_yticks([row[0] for row in rows], [row[1].replace("$", r"\$") for row in rows])
    axis.tick_params(axis="y", labelsize=9)
    axis.set_ylim(rows[-1][0] + 0.6, -0.6)
    if about.factor == 100:
        percent_axis(axis.xaxis)
        low, high = axis.get_xlim()
        axis.set_xlim(max(low, -0.02), min(high, 1.02))
    else:
        axis.set_xlim(0, None)
    axis.set_xlabel(about.heading.removesuffix(" %"), color=INK)
    style_axes(axis, "x")
    if legend:
        place_of = (left / (left + side + MARGIN), (below + body + 0.02) / figure.get_figheight())
        figure.legend(loc="lower left", bbox_to_anchor=place_of, frameon=False, fontsize=9)
    return figure


def reliability_curves(
    task: str, measured: Sequence[Measured], subtitle: str, notice: str
) -> Figure | None:
    """Accuracy against the probability of the predicted class, for each predictor that has one."""
    shown = [(i, m) for i, m in enumerate(measured) if task in m.reliability]
    if not shown:
        return None
    side, left, below = 3.8, 0.95, 0.62
    text = f"{subtitle}; each dot: a bin of at least {MIN_IN_BIN} faces"
    title = f"{task.capitalize()}: calibration"
    height = below + side + 0.1
    figure, _ = titled_figure(left + side + 0.45, height, title, text, notice)
    axis = add_axes(figure, left, below, side, side)
    axis.plot([0, 1], [0, 1], color=EDGE, linewidth=1, linestyle=":", label="perfect calibration")
    for index, each in shown:
        bins: Mapping[str, Any] = each.reliability[task]["reliability"]
        enough = [at for at, count in enumerate(bins["count"]) if count >= MIN_IN_BIN]
        axis.plot(
            [bins["confidence"][at] for at in enough],
            [bins["accuracy"][at] for at in enough],
            color=COLORS[index % len(COLORS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=5,
            label=legend_name(each.predictions.name),
        )
    axis.set_xlim(0.5 if task == "gender" else 0, 1.01)
    axis.set_ylim(0, 1.01)
    percent_axis(axis.xaxis)
    percent_axis(axis.yaxis)
    axis.set_xlabel("Probability of the predicted class", color=INK)
    axis.set_ylabel("Accuracy", color=INK)
    style_axes(axis)
    axis.legend(frameon=False, fontsize=9, labelcolor=INK, loc="best")
    return figure


def errors_by_age(
    age: np.ndarray, measured: Sequence[Measured], subtitle: str, notice: str
) -> Figure | None:
    """Predicted minus labelled age in bands of ten years: the median and the middle half.

    Args:
        age: labelled ages in years, or the middle of a range, float [N]; nan if unknown.
        measured: the predictors.
        subtitle, notice: of the figure.
    """
    shown = [(i, m) for i, m in enumerate(measured) if np.isfinite(m.predictions.age - age).any()]
    if not shown:
        return None
    left, side, below, tall = 0.85, 5.6, 0.62, 3.2
    text = (
        f"{subtitle}; median and middle half in bands of {_BAND} years of at least 10 faces; of a "
        "labelled range its middle"
    )
    title = "Age: predicted minus labelled, by labelled age"
    figure, _ = titled_figure(left + side + 0.3, below + tall + 0.1, title, text, notice)
    axis = add_axes(figure, left, below, side, tall)
    axis.axhline(0, color=FAINT, linewidth=1, linestyle=":")
    for place, (index, each) in enumerate(shown):
        error = each.predictions.age - age
        points = []
        for start in range(0, 101, _BAND):
            inside = (age >= start) & (age < start + _BAND) & np.isfinite(error)
            if inside.sum() >= 10:
                low, middle, high = np.percentile(error[inside], (25, 50, 75))
                points.append((float(age[inside].mean()), low, middle, high))
        if not points:
            continue
        at, low, middle, high = np.array(points).T
        at = at + (place - (len(shown) - 1) / 2) * 0.7
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        axis.vlines(at, low, high, color=color, linewidth=2, alpha=0.55)
        name = legend_name(each.predictions.name)
        axis.plot(at, middle, color=color, marker=marker, markersize=5, label=name)
    axis.set_xlabel("Labelled age, years", color=INK)
    axis.set_ylabel("Predicted minus labelled, years", color=INK)
    style_axes(axis)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=9, labelcolor=INK, loc="best")
    return figure
