"""The figures of a search: what matters, and which values the best trials have."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from agenet.evaluation.figure_style import (
    COLORS,
    EDGE,
    FAINT,
    INK,
    MARGIN,
    add_axes,
    percent_axis,
    short_text,
    style_axes,
    titled_figure,
)
from agenet.evaluation.summary import percent

MOST_PARAMETERS, MOST_LINES = 12, 500
# All of them can be seen on white and on black.
_SHADES = LinearSegmentedColormap.from_list("trials", ["#B4CFE0", COLORS[5], COLORS[0]])
_BEST = COLORS[1]
_UNUSED = -0.16  # height of parameters that a trial does not have
_LONGEST = 18  # letters of a name or a value


@dataclass(frozen=True)
class Line:
    """A trial: its parameters, its value, and whether it was trained to its end."""

    params: Mapping[str, Any]
    value: float
    finished: bool


def importance_bars(shares: Mapping[str, float], subtitle: str, notice: str) -> Figure:
    """The share of each parameter, from 0 to 1, as a bar; the largest on top."""
    shown = dict(sorted(shares.items(), key=lambda item: -item[1])[:MOST_PARAMETERS])
    left, body = 0.35 + 0.09 * min(_LONGEST, max(map(len, shown))), 0.36 * len(shown) + 0.15
    figure, _ = titled_figure(7.0, 0.62 + body, "Importance of the parameters", subtitle, notice)
    axis = add_axes(figure, left, 0.55, 7.0 - left - MARGIN - 0.45, body)
    places = range(len(shown))
    axis.barh(places, list(shown.values()), 0.62, color=COLORS[0])
    for place, share in zip(places, shown.values(), strict=True):
        text: dict[str, Any] = {"va": "center", "fontsize": 10, "color": INK}
        axis.annotate(
            f"{percent(share, 0)} %", (share, place), (5, 0), textcoords="offset points", **text
        )
    axis.set_yticks(places, [short_text(name, _LONGEST) for name in shown], fontsize=10.5)
    axis.set_ylim(len(shown) - 0.5, -0.5)
    axis.set_xlim(0, None)
    percent_axis(axis.xaxis)
    style_axes(axis, "x")
    axis.set_xlabel("Share of the differences between trials", color=INK)
    return figure


def parallel_coordinates(
    lines: Sequence[Line],
    metric: str,
    minimizes: bool,
    logarithmic: Sequence[str],
    order: Sequence[str],
    subtitle: str,
    notice: str,
) -> Figure:
    """A line for each trial through its parameters to its value; bluer is better.

    Args:
        lines: at least one; of more than `MOST_LINES` the best are drawn.
        metric: what the value is.
        minimizes: whether small values are good; the best is on top in any case.
        logarithmic: parameters with a logarithmic axis.
        order: parameters that come first, such as by importance.
        subtitle: names model and data set.
        notice: what readers must know about the data, or "".
    """
    found = dict.fromkeys(name for line in lines for name in line.params)
    names = [*(name for name in order if name in found), *(n for n in found if n not in order)]
    names = names[:MOST_PARAMETERS]
    kept = sorted(lines, key=lambda line: line.value, reverse=minimizes)[-MOST_LINES:]
    scales = [
        _scale([line.params[n] for line in lines if n in line.params], n in logarithmic)
        for n in names
    ]
    finished = [line for line in kept if line.finished] or kept
    scales.append(_scale([line.value for line in finished], False))
    unused = any(name not in line.params for line in kept for name in names)
    body, below, step = 3.6, 0.55, 1.35
    width = max(6.5, 2 * 0.95 + step * len(names))
    title = "Trials by their parameters"
    figure, _ = titled_figure(width, body + below + 0.55, title, subtitle, notice)
    axis = add_axes(figure, 0.95, below, width - 2 * 0.95, body)
    worst, best = (f([line.value for line in finished]) for f in (min, max))
    worst, best = (best, worst) if minimizes else (worst, best)
    for line in kept:
        heights = [
            scale.place(line.params[name]) if name in line.params else _UNUSED
            for name, scale in zip(names, scales, strict=False)
        ]
        end = min(max(scales[-1].place(line.value), 0.0), 1.0)
        heights.append(1 - end if minimizes else end)
        quality = (line.value - worst) / (best - worst) if best != worst else 1.0
        style: dict[str, Any] = {"color": _SHADES(quality), "linewidth": 1.4}
        if line is finished[-1]:
            style = {"color": _BEST, "linewidth": 2.6, "zorder": 2.5}
        elif not line.finished:
            style = {"color": FAINT, "linewidth": 0.8, "linestyle": ":"}
        axis.plot(range(len(heights)), heights, **style)
    for place, (name, scale) in enumerate(zip([*names, metric], scales, strict=True)):
        last = place == len(names)
        _draw_axis(
            axis, place, short_text(name, 24 if last else _LONGEST), scale, last and minimizes
        )
        if unused and not last and any(name not in line.params for line in kept):
            axis.text(place - 0.04, _UNUSED, "not used", ha="right", va="center", **_SMALL)
    axis.set_xlim(-0.02, len(names) + 0.02)
    axis.set_ylim(_UNUSED - 0.04 if unused else -0.02, 1.02)
    axis.set_axis_off()
    return figure


_SMALL: dict[str, Any] = {"fontsize": 8.5, "color": INK}


@dataclass(frozen=True)
class _Scale:
    """From a value to a height of 0 to 1, and the values to be marked."""

    place: Callable[[Any], float]
    ticks: Sequence[tuple[float, str]]


def _scale(values: Sequence[Any], logarithmic: bool) -> _Scale:
    numbers = [value for value in values if type(value) in (int, float) and math.isfinite(value)]
    if len(numbers) < len(values) or not numbers:
        known = list(dict.fromkeys(map(str, values)))
        known.sort()
        last = max(len(known) - 1, 1)
        heights = {
            name: index / last if len(known) > 1 else 0.5 for index, name in enumerate(known)
        }
        return _Scale(
            lambda value: heights.get(str(value), 0.5),
            [(h, short_text(n, _LONGEST)) for n, h in heights.items()],
        )
    low, high = float(min(numbers)), float(max(numbers))
    log = logarithmic and low > 0
    start, end = (math.log(low), math.log(high)) if log else (low, high)
    span = end - start
    if not span:
        return _Scale(lambda value: 0.5, [(0.5, f"{low:.3g}")])

    def place(value: Any) -> float:
        return ((math.log(value) if log else float(value)) - start) / span

    whole = all(type(value) is int for value in numbers)
    marks = np.linspace(start, end, 5)
    marked = [math.exp(mark) if log else float(mark) for mark in marks]
    marked = sorted({float(round(mark)) for mark in marked}) if whole else marked
    digits = 4 if abs(high - low) < 0.1 * max(abs(high), abs(low)) else 3
    return _Scale(place, [(place(mark), f"{mark:.{digits}g}") for mark in marked])


def _draw_axis(axis: Axes, place: int, name: str, scale: _Scale, upside_down: bool) -> None:
    axis.plot([place, place], [0, 1], color=EDGE, linewidth=1, zorder=3)
    axis.text(place, 1.05, name, ha="center", va="bottom", fontsize=10, color=INK, weight="bold")
    for height, text in scale.ticks:
        y = 1 - height if upside_down else height
        axis.plot([place - 0.02, place], [y, y], color=EDGE, linewidth=1, zorder=3)
        axis.text(place - 0.04, y, text, ha="right", va="center", zorder=4, **_SMALL)
