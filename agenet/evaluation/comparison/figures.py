"""Pictures of several runs on the same axes, for a page and for a talk.

As in `agenet.evaluation.figures`, no figure is registered with Matplotlib's global state. A run has
the same colour, marker and letter in every figure; Okabe & Ito's colours remain distinct for
colour-blind readers.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from agenet.evaluation.comparison.runs import Run
from agenet.evaluation.comparison.statistics import (
    Bar,
    Difference,
    Estimate,
    confusion,
    estimate,
    mean,
    reliability,
    subgroups,
)
from agenet.evaluation.figures import FAINT, INK, MIN_IN_BIN, SHADES, ink_on, percent, quiet, series
from agenet.evaluation.metrics import SUBGROUPS
from agenet.labels import TASK_CLASSES

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1")
DASHES = ("-", "--", ":")
MARKS = ("o", "s", "D", "^", "v", "P", "X")
# On a shade, whatever the page's colours are.
DARK, LIGHT = "#1b1b1b", "#fdfdfd"
MIN_SPAN = 0.1  # of accuracy: little differences are to look little
MAX_WIDTH = 11.5  # inches of panels beside each other
# Colours of a picture that follow the page's.
_OF_PAGE = {INK: "--ink", FAINT: "--faint", "#999999": "--faint", "#e4e4e4": "--line"}
# Of groups, the same in every picture; nothing refers to them.
_GROUP_ID = re.compile(
    r' id="(figure|axes|patch|text|line2d|[xy]tick|matplotlib\.axis|legend|[A-Z][A-Za-z]+)_\d+"'
)
SECONDS = (1, 10, 60, 600, 3600, 36_000, 86_400, 864_000)
_TIMES = ("1 s", "10 s", "1 min", "10 min", "1 h", "10 h", "1 day", "10 days")


@dataclass(frozen=True)
class Look:
    """How a run is told from the others."""

    key: str
    label: str
    color: str
    dash: str
    mark: str

    @property
    def letter(self) -> str:
        """Colour of the key's letter on the run's own."""
        return on(self.color)


@dataclass(frozen=True)
class Point:
    """A published result: where it stands against cost."""

    name: str
    seconds: float
    accuracy: float


def look(number: int, run: Run) -> Look:
    """Of the run that stands at this place, from 0."""
    # Between two dollars Matplotlib would see a formula.
    label = run.name.replace("$", r"\$") + (" (persons seen in training)" if run.leaks else "")
    return Look(
        key=chr(ord("A") + number),
        label=f"{chr(ord('A') + number)}  {label}",
        color=COLORS[number % len(COLORS)],
        dash=DASHES[number // len(COLORS) % len(DASHES)],
        mark=MARKS[number % len(MARKS)],
    )


def on(color: str) -> str:
    """The ink with the better contrast."""
    return DARK if ink_on(matplotlib.colors.to_rgba(color)) == INK else LIGHT


Looks = Sequence[tuple[Run, Look]]


def curves(runs: Looks, tasks: Sequence[str]) -> Figure | None:
    """Loss and accuracy of each task on validation data over epochs; None where nobody has any.

    Of folds, each thinly and their mean; a ring marks the state that was chosen and tested.
    """
    figure, axes = _panels(len(tasks), 2, 3.1, runs)
    drawn = False
    for column, task in enumerate(tasks):
        for row, (name, title) in enumerate((("loss", "loss"), ("accuracy", "accuracy"))):
            axis = axes[row][column]
            _title(axis, f"{task.capitalize()}: validation {title}")
            for run, own in runs:
                drawn |= _curve(axis, run, own, f"validation/{task}_{name}")
            if name == "accuracy":
                axis.yaxis.set_major_formatter(FuncFormatter(_percent))
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
            axis.set_xlim(left=0)
            if row:
                axis.set_xlabel("Epoch", color=INK, fontsize=11)
            quiet(axis)
    return figure if drawn else None


def _curve(axis: Axes, run: Run, own: Look, name: str) -> bool:
    every = [series(test.history, name) for test in run.tests]
    every = [found for found in every if found[0]]
    if not every:
        return False
    style: dict[str, Any] = {"color": own.color, "linestyle": own.dash}
    length = min(len(values) for _, values in every)
    if run.is_folds:
        for epochs, values in every:
            axis.plot(epochs, values, linewidth=0.8, alpha=0.4, **style)
    epochs = np.mean([found[0][:length] for found in every], axis=0)
    values = np.mean([found[1][:length] for found in every], axis=0)
    axis.plot(epochs, values, linewidth=2.2, marker=own.mark, markersize=5, **style)
    if not run.is_folds:
        training = run.first["training"]
        best = training["best_step"] * training["epochs"] / max(training["steps"], 1)
        nearest = int(np.abs(epochs - best).argmin())
        ring: dict[str, Any] = {"markersize": 12, "markerfacecolor": "none", "markeredgewidth": 1.8}
        at = ([epochs[nearest]], [values[nearest]])
        axis.plot(*at, marker="o", markeredgecolor=own.color, linestyle="", **ring)
    return True


def cost(runs: Looks, tasks: Sequence[str], published: dict[str, list[Point]]) -> Figure:
    """Accuracy on the test against the time of training, on a logarithmic axis."""
    extra = [_handle("o", FAINT, "reference report (its own machine and split)")]
    has_points = any(published.get(task) for task in tasks)
    # The points are letters in circles, not the marks of curves.
    runs = [(run, replace(own, mark="o", dash="")) for run, own in runs]
    figure, axes = _panels(len(tasks), 1, 3.9, runs, extra if has_points else [])
    for axis, task in zip(axes[0], tasks, strict=True):
        _title(axis, f"{task.capitalize()}: accuracy on the test")
        times: list[float] = []
        points: list[tuple[float, float, Look]] = []
        for point in published.get(task, []):
            times.append(point.seconds)
            axis.plot(point.seconds, point.accuracy, "o", markersize=9, color=FAINT, mfc="none")
            style: dict[str, Any] = {"fontsize": 9, "color": FAINT, "ha": "center", "va": "top"}
            at = (point.seconds, point.accuracy)
            axis.annotate(point.name, at, (0, -8), textcoords="offset points", **style)
        for run, own in runs:
            found = estimate(run, task, "accuracy") if task in run.tasks else None
            if found is None:
                continue
            seconds = max(mean(run, "training", "seconds"), 0.1)
            times.append(seconds)
            points.append((seconds, found.value, own))
            axis.plot(seconds, found.value, "o", color=own.color, markersize=5)
            if found.ends:
                axis.plot([seconds] * 2, found.ends, color=own.color, linewidth=1.8, zorder=3)
        axis.set_xscale("log")
        low, high = min(times), max(times)
        axis.set_xlim(low / 1.8, high * 1.8)
        shown = [t for t in SECONDS if low / 1.8 <= t <= high * 1.8]
        ticks = shown if len(shown) > 1 else np.geomspace(low / 1.4, high * 1.4, 3).tolist()
        axis.xaxis.set_major_locator(FixedLocator(ticks))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda t, _: _time(t)))
        axis.yaxis.set_major_formatter(FuncFormatter(_percent))
        axis.margins(y=0.14)
        bottom, top = axis.get_ylim()
        spare = max(0, MIN_SPAN - (top - bottom)) / 2
        axis.set_ylim(bottom - spare, top + spare)
        _badges(axis, points)
        axis.set_xlabel("Time of one training, validation included (logarithmic)", fontsize=11)
        axis.xaxis.label.set_color(INK)
        quiet(axis)
    return figure


def calibration(runs: Looks, task: str) -> Figure | None:
    """Share that is right against the probability that was claimed; None without any such bins."""
    found = [(run, own, reliability(run, task)) for run, own in runs if task in run.tasks]
    known = [(own, bins) for _, own, bins in found if bins is not None]
    if not known:
        return None
    drawn = [(run, own) for run, own, bins in found if bins is not None]
    figure, axes = _panels(1, 1, 4.6, drawn, width=5.6)
    axis = axes[0][0]
    axis.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, linestyle=(0, (2, 3)))
    for own, (count, confidence, accuracy) in known:
        style: dict[str, Any] = {"color": own.color, "linestyle": own.dash}
        enough = count >= MIN_IN_BIN
        axis.plot(confidence[enough], accuracy[enough], linewidth=1.6, **style)
        area = 12 + 380 * count / count.sum()
        axis.scatter(confidence, accuracy, s=area, color=own.color, marker=own.mark, alpha=0.85)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(FuncFormatter(_percent))
    axis.set_xlim(0, 1.03)
    axis.set_ylim(0, 1.03)
    axis.set_xlabel("Probability of the predicted class", color=INK, fontsize=11)
    _title(axis, f"{task.capitalize()}: share that is right")
    quiet(axis)
    return figure


def bars(runs: Looks, task: str) -> list[Figure]:
    """Accuracy in every subgroup, the runs beside each other; several where one is too wide."""
    shown = [(run, own) for run, own in runs if task in run.tasks]
    found = {
        division: [subgroups(run, task, division) for run, _ in shown] for division in SUBGROUPS
    }
    names = {
        division: [n for n in SUBGROUPS[division] if any(n in groups for groups in of_runs)]
        for division, of_runs in found.items()
    }
    slot = max(0.62, 0.17 * len(shown) + 0.2)
    widths = {division: slot * len(groups) + 0.25 for division, groups in names.items() if groups}
    rows: list[dict[str, float]] = []
    for division, width in widths.items():
        if rows and sum(rows[-1].values()) + width < MAX_WIDTH:
            rows[-1][division] = width
        else:
            rows.append({division: width})
    return [_bars(shown, task, found, names, row) for row in rows]


def _bars(
    shown: Looks,
    task: str,
    found: dict[str, list[dict[str, Bar]]],
    names: dict[str, list[str]],
    widths: dict[str, float],
) -> Figure:
    """The divisions that have a width, each a panel."""
    figure, axes = _panels(len(widths), 1, 3.3, shown, widths=list(widths.values()), gap=0.3)
    for axis, division in zip(axes[0], widths, strict=True):
        groups = names[division]
        thick = 0.84 / len(shown)
        for place, ((_, own), of_run) in enumerate(zip(shown, found[division], strict=True)):
            for at, name in enumerate(groups):
                if (bar := of_run.get(name)) is None:
                    continue
                x = at + (place - (len(shown) - 1) / 2) * thick
                axis.bar(x, bar.accuracy, 0.9 * thick, color=own.color, alpha=0.85)
                if bar.interval:
                    axis.plot([x, x], bar.interval, color=INK, linewidth=1.2)
                if bar.folds:
                    dots: dict[str, Any] = {"color": INK, "markersize": 2.6, "linestyle": ""}
                    axis.plot([x] * len(bar.folds), bar.folds, marker="o", **dots)
        title = "By true class" if division == task else f"By {division}"
        _title(axis, title)
        labels = [name.replace("_", " ").replace(" ", "\n") for name in groups]
        axis.set_xticks(range(len(groups)), labels, fontsize=10)
        axis.set_xlim(-0.6, len(groups) - 0.4)
        axis.set_ylim(0, 1)
        axis.yaxis.set_major_formatter(FuncFormatter(_percent))
        quiet(axis)
        axis.tick_params(axis="x", length=0)
        if axis is not axes[0][0]:
            axis.tick_params(labelleft=False)
    return figure


def matrix(run: Run, own: Look, task: str) -> Figure:
    """Shares of each true class, the diagonal being right; counts of folds are pooled."""
    names = TASK_CLASSES[task]
    counts = confusion(run, task)
    shares = counts / np.maximum(counts.sum(axis=1), 1)[:, None]
    cell = max(0.5, 2.6 / len(names))
    side, left, top = cell * len(names), 1.25, 0.75
    width, height = left + side + 0.15, top + side + 0.6
    figure = Figure(figsize=(width, height), facecolor="white")
    axis = figure.add_axes((left / width, 0.6 / height, side / width, side / height))
    edges = np.arange(len(names) + 1) - 0.5
    axis.pcolormesh(edges, edges, shares, cmap=SHADES, vmin=0, vmax=1, edgecolor="#c8ccd2", lw=0.6)
    axis.set_aspect("equal")
    axis.invert_yaxis()
    for (row, column), count in np.ndenumerate(counts):
        if count:
            text = percent(shares[row, column], 0)
            ink = on(matplotlib.colors.to_hex(SHADES(shares[row, column])))
            weight = "bold" if row == column else "normal"
            place: dict[str, Any] = {"ha": "center", "va": "center"}
            axis.text(column, row, text, fontsize=11, color=ink, weight=weight, **place)
    totals = counts.sum(axis=1)
    axis.set_xticks(range(len(names)), names, fontsize=10, rotation=40 if len(names) > 4 else 0)
    rows = [f"{name}  ({total:,})" for name, total in zip(names, totals, strict=True)]
    axis.set_yticks(range(len(names)), rows, fontsize=10)
    axis.tick_params(length=0, labelcolor=INK)
    axis.spines[:].set_visible(False)
    right = percent(counts.trace() / max(counts.sum(), 1))
    label = f"{own.key}  {run.name}"
    text = (label if len(label) < 40 else label[:39] + "…").replace("$", r"\$")
    figure.text(0.02, 1 - 0.3 / height, text, fontsize=12.5, weight="bold", color=INK)
    folds = f", {len(run.tests)} folds pooled" if run.is_folds else ""
    folds += ", persons seen in training" if run.leaks else ""
    note = f"{right} % right{folds}; rows: true class, % of its faces"
    figure.text(0.02, 1 - 0.53 / height, note, fontsize=9.5, color=FAINT)
    return figure


def forest(pairs: Sequence[Difference], looks: dict[int, Look], task: str) -> Figure:
    """Difference in accuracy of every pair of runs, with its interval.

    Args:
        pairs: not empty.
        looks: of the runs, by their id().
        task: "age" or "gender".
    """
    height = 0.7 + 0.36 * len(pairs)
    width, left, right = 9.4, 1.5, 2.1
    figure = Figure(figsize=(width, height), facecolor="white")
    inner = ((width - left - right) / width, 0.36 * len(pairs) / height)
    axis = figure.add_axes((left / width, 0.58 / height, *inner))
    axis.axvline(0, color=FAINT, linewidth=1.2, linestyle=(0, (2, 3)))
    for at, pair in enumerate(pairs):
        first, second = looks[id(pair.first)], looks[id(pair.second)]
        better = second if pair.accuracy.value >= 0 else first
        color = better.color
        if pair.accuracy.interval:
            points = [100 * end for end in pair.accuracy.interval]
            axis.plot(points, [at, at], color=color, linewidth=2.4, solid_capstyle="butt")
        axis.plot(100 * pair.accuracy.value, at, "o", color=color, markersize=8)
        text = f"{signed(pair.accuracy)} points"
        style: dict[str, Any] = {"fontsize": 10.5, "color": INK, "va": "center"}
        style |= {"xycoords": axis.get_yaxis_transform(), "textcoords": "offset points"}
        axis.annotate(text, (1, at), (10, 0), annotation_clip=False, **style)
    names = [f"{looks[id(p.second)].key} over {looks[id(p.first)].key}" for p in pairs]
    axis.set_yticks(range(len(pairs)), names, fontsize=11)
    axis.set_ylim(len(pairs) - 0.5, -0.5)
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, -1), max(high, 1))
    axis.set_xlabel(f"Difference in {task} accuracy, points", color=INK, fontsize=11)
    quiet(axis)
    axis.grid(visible=False, axis="y")
    axis.grid(axis="x", color="#E4E4E4", linewidth=0.8)
    axis.tick_params(axis="y", length=0)
    return figure


def signed(found: Estimate) -> str:
    """Points of a difference in shares, with a sign that is a minus, not a hyphen."""
    return f"{100 * found.value:+.1f}".replace("-", "−")


def _panels(
    columns: int,
    rows: int,
    height: float,
    runs: Looks,
    extra: Sequence[Line2D] = (),
    *,
    width: float = 5.1,
    widths: Sequence[float] = (),
    gap: float = 0.75,
) -> tuple[Figure, list[list[Axes]]]:
    """Empty panels [rows][columns] of sizes in inches, below a legend of the runs."""
    widths = widths or [width] * columns
    left, below, between = 0.75, 0.62, 0.72
    total = left + sum(widths) + gap * (columns - 1) + 0.15
    labels = [own.label for _, own in runs] + [str(handle.get_label()) for handle in extra]
    # About 12 letters of 10.5 points go into an inch, and a line and a space take 0.7.
    longest = 0.7 + max(map(len, labels)) / 12
    per_line = max(1, min(len(labels), int(total / longest)))
    lines = -(-len(labels) // per_line)
    head = 0.12 + 0.26 * lines
    tall = head + rows * (height + 0.35) + (rows - 1) * (between - 0.35) + below
    total = max(total, longest)
    figure = Figure(figsize=(total, tall), facecolor="white")
    axes: list[list[Axes]] = []
    for row in range(rows):
        top = head + 0.35 + row * (height + between)
        starts = left + np.cumsum([0.0, *(w + gap for w in widths[:-1])])
        axes.append(
            [
                figure.add_axes((x / total, 1 - (top + height) / tall, w / total, height / tall))
                for x, w in zip(starts.tolist(), widths, strict=True)
            ]
        )
    handles = [_handle(own.mark, own.color, own.label, own.dash) for _, own in runs]
    figure.legend(
        handles=[*handles, *extra],
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


def _handle(mark: str, color: str, label: str, dash: str = "") -> Line2D:
    hollow: dict[str, Any] = {"markerfacecolor": "none"} if color == FAINT else {}
    line: dict[str, Any] = {"linestyle": dash or "none", "linewidth": 2.2, "markersize": 7}
    return Line2D([], [], color=color, marker=mark, label=label, **line, **hollow)


def _badges(axis: Axes, points: Sequence[tuple[float, float, Look]]) -> None:
    """The letters of runs in circles at their points, or to the right of one that is there."""
    taken: list[np.ndarray] = []
    to_dots, from_dots = axis.transData.transform, axis.transData.inverted().transform
    inch = axis.figure.dpi
    for x, y, own in points:
        at = to_dots((x, y))
        while any(np.hypot(*(at - other)) < 0.25 * inch for other in taken):
            at = at + (0.27 * inch, 0)
        taken.append(at)
        across, up = from_dots(at).tolist()
        axis.plot(across, up, "o", color=own.color, markersize=17, zorder=4)
        style: dict[str, Any] = {"ha": "center", "va": "center_baseline", "zorder": 5}
        axis.text(across, up, own.key, fontsize=11, weight="bold", color=own.letter, **style)


def _title(axis: Axes, text: str) -> None:
    axis.set_title(text, loc="left", fontsize=12.5, color=INK, weight="bold")


def _percent(share: float, _: object) -> str:
    return f"{round(100 * share, 6):g} %"


def _time(seconds: float) -> str:
    if seconds in SECONDS:
        return _TIMES[SECONDS.index(int(seconds))]
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def to_png(figure: Figure) -> bytes:
    """On white, 150 dots to the inch."""
    png = io.BytesIO()
    with _drawing("agenet"):
        figure.savefig(png, format="png", dpi=150)
    return png.getvalue()


def to_svg(figure: Figure, name: str) -> str:
    """An element to stand in a page, whose ink and lines take the page's colours.

    Text is drawn as outlines: the page holds no letter of what a run is called, and looks the
    same wherever it is opened.

    Args:
        figure: to draw.
        name: different from that of all others in the page, for what the parts refer to.
    """
    text = io.StringIO()
    with _drawing(name):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->\s*|<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = _GROUP_ID.sub("", svg)
    for color, variable in _OF_PAGE.items():
        svg = svg.replace(color.lower(), f"var({variable})")
    return re.sub(r"\n\s*", "\n", svg)


@contextmanager
def _drawing(salt: str) -> Iterator[None]:
    with (
        matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": salt}),
        warnings.catch_warnings(),
    ):
        # A name in letters that the font lacks: the tables have it in the reader's own.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield
