"""The pictures of a report: curves, confusion, calibration, subgroups and sheets of faces.

Every function returns a `matplotlib.figure.Figure` that no global state refers to, so that a
process that draws many keeps none. Shades and hues stay apart for colour-blind readers (the
palette of Okabe & Ito), and wherever colour carries meaning a line style or a mark does, too.
"""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from agenet.labels import TASK_CLASSES, UNKNOWN

CURVES: dict[str, dict[str, Any]] = {
    "training": {"color": "#D55E00", "linewidth": 1.0, "marker": "."},
    "validation": {"color": "#0072B2", "linewidth": 2.0, "marker": "o", "markersize": 4.5},
    "validation, 1-off": {
        "color": "#009E73",
        "linewidth": 1.5,
        "linestyle": "--",
        "marker": "D",
        "markersize": 4,
    },
}
RIGHT, WRONG = "#00664B", "#B34700"
INK, FAINT = "#222222", "#767676"
SHADES = colormaps["Blues"]
MARGIN = 0.25
FACES_PER_ROW = 8
MIN_IN_BIN = 10  # faces behind a point that a line of calibration goes through

Series = tuple[list[float], list[float]]
# Heading of a group on a sheet of faces, and the positions [K] of its faces.
Group = tuple[str, np.ndarray]


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 in per cent, without the sign; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.{digits}f}"


def learning_curves(
    history: Sequence[dict[str, Any]],
    tasks: Sequence[str],
    training: dict[str, Any],
    subtitle: str,
    notice: str,
) -> Figure:
    """Loss and accuracies of training and validation over epochs, the tested step marked.

    Args:
        history: logged rows, with `step`, `epoch` and any of the metrics.
        tasks: one panel of accuracy each, beside that of the loss.
        training: `best_step`, and `steps` and `epochs`, which place it on the axis.
        subtitle: model and data set.
        notice: what a viewer has to know about the data, or "".
    """
    panels = 1 + len(tasks)
    panel_width, panel_height, left, below = 3.9, 2.75, 0.62, 0.62
    width = panels * (panel_width + left) + 0.2
    figure, _ = _figure(width, below + panel_height + 0.3, "Learning curves", subtitle, notice)
    height = figure.get_figheight()
    axes = [
        figure.add_axes(
            (
                (left + panel * (panel_width + left)) / width,
                below / height,
                panel_width / width,
                panel_height / height,
            )
        )
        for panel in range(panels)
    ]
    steps = training["steps"]
    best = training["best_step"] * training["epochs"] / steps if steps else 0.0

    loss = {
        "training": series(history, "train/loss"),
        "validation": series(history, "validation/loss"),
    }
    _curves(axes[0], loss, best)
    _heading(axes[0], "Loss" + (f" ({' + '.join(tasks)})" if panels > 2 else ""))
    axes[0].set_ylim(0, None)
    for axis, task in zip(axes[1:], tasks, strict=True):
        accuracy = {
            "training": series(history, f"train/{task}_accuracy"),
            "validation": series(history, f"validation/{task}_accuracy"),
            "validation, 1-off": series(history, f"validation/{task}_one_off"),
        }
        _curves(axis, accuracy, best)
        _heading(axis, f"Accuracy, {task}")
        axis.set_ylim(0, 1)
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    return figure


def confusion_matrix(task: str, metrics: dict[str, Any], subtitle: str, notice: str) -> Figure:
    """Counts and row shares of every pair of true and predicted class.

    Args:
        task: "age" or "gender".
        metrics: what `agenet.evaluation.metrics.task_metrics` returned.
        subtitle: model and data set.
        notice: what a viewer has to know about the data, or "".
    """
    names = TASK_CLASSES[task]
    counts = np.array(metrics["confusion"])
    support = counts.sum(axis=1)
    shares = counts / np.maximum(support, 1)[:, None]
    cell = max(0.78, 3.5 / len(names))
    side, left, below = cell * len(names), 1.35, 0.75
    title = f"{task.capitalize()}: {percent(metrics['accuracy'])} % right"
    if "one_off" in metrics:
        title += f", {percent(metrics['one_off'])} % at most one group off"
    width = left + side + 0.3
    figure, _ = _figure(width, below + side + 0.05, title, subtitle, notice)
    height = figure.get_figheight()
    axis = figure.add_axes((left / width, below / height, side / width, side / height))
    axis.imshow(shares, cmap=SHADES, vmin=0, vmax=1, aspect="equal")
    for (row, column), count in np.ndenumerate(counts):
        at = (column, row)
        if not count:
            # A class that does not occur has no shares, which is not the same as none.
            _cell_text(axis, at, "0" if support[row] else "–", 0, color=FAINT, fontsize=9)
            continue
        ink = ink_on(SHADES(shares[row, column]))
        weight = "bold" if row == column else "normal"
        share = f"{percent(shares[row, column], 0)} %"
        _cell_text(axis, at, share, 6, color=ink, fontsize=11, weight=weight)
        _cell_text(axis, at, f"{count:,}", -8, color=ink, fontsize=8)
    rows = [f"{name}\n{total:,} faces" for name, total in zip(names, support, strict=True)]
    axis.set_xticks(range(len(names)), names, fontsize=10)
    axis.set_yticks(range(len(names)), rows, fontsize=9)
    axis.set_xticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axis.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axis.grid(which="minor", color="#DDDDDD", linewidth=0.8)
    axis.tick_params(which="both", length=0, labelcolor=INK)
    axis.spines[:].set_color("#BBBBBB")
    axis.set_xlabel("Predicted", fontsize=11, color=INK, labelpad=6)
    axis.set_ylabel("True", fontsize=11, color=INK, labelpad=6)
    return figure


def reliability_diagram(task: str, metrics: dict[str, Any], subtitle: str, notice: str) -> Figure:
    """Accuracy against the probability of the predicted class, and how many faces have which.

    Bars are bins; each dot stands at the mean probability of its bin. The line leaves out bins of
    few faces, whose means may be anything.

    Args:
        task: "age" or "gender".
        metrics: what `agenet.evaluation.metrics.report_metrics` returned.
        subtitle: model and data set.
        notice: what a viewer has to know about the data, or "".
    """
    bins = metrics["reliability"]
    counts = np.array(bins["count"])
    edges = np.linspace(0, 1, len(counts) + 1)
    filled = np.flatnonzero(counts)
    confidence = np.array([bins["confidence"][i] for i in filled])
    accuracy = np.array([bins["accuracy"][i] for i in filled])
    title = f"{task.capitalize()}: calibration error {percent(metrics['calibration_error'])} %"
    subtitle = f"{subtitle}, {len(counts)} equal bins, mean error weighted by faces"
    side, low, gap, left, below, right = 3.6, 0.9, 0.2, 0.9, 0.62, 0.4
    width = left + side + right
    figure, _ = _figure(width, below + low + gap + side + 0.1, title, subtitle, notice)
    height = figure.get_figheight()
    above = (left / width, (below + low + gap) / height, side / width, side / height)
    axis = figure.add_axes(above)
    histogram = figure.add_axes((left / width, below / height, side / width, low / height))

    axis.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":", label="perfect calibration")
    blue = CURVES["validation"]["color"]
    widths = np.diff(edges)[filled]
    axis.bar(edges[filled], accuracy, widths, align="edge", color=SHADES(0.35), edgecolor="white")
    axis.plot(confidence, accuracy, "o", color=blue, markersize=4.5, label="bin means")
    enough = counts[filled] >= MIN_IN_BIN
    label = f"of {MIN_IN_BIN} faces or more"
    axis.plot(confidence[enough], accuracy[enough], color=blue, label=label)
    axis.set_ylim(0, 1)
    axis.set_ylabel("Share that is right", color=INK)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axis.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left")
    axis.tick_params(labelbottom=False)
    histogram.bar(edges[:-1], counts, np.diff(edges), align="edge", color="#999999")
    histogram.set_ylabel("Faces", color=INK)
    histogram.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    histogram.set_xlabel("Probability of the predicted class", color=INK)
    histogram.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    for panel in (axis, histogram):
        panel.set_xlim(0, 1)
        quiet(panel)
    return figure


def subgroup_bars(task: str, metrics: dict[str, Any], subtitle: str, notice: str) -> Figure:
    """Accuracy in every subgroup, with its interval, beside that over all faces.

    Args:
        task: "age" or "gender".
        metrics: what `agenet.evaluation.metrics.report_metrics` returned.
        subtitle: model and data set.
        notice: what a viewer has to know about the data, or "".
    """
    rows: list[tuple[float, str, dict[str, Any]]] = [(0.0, "all faces", metrics)]
    for groups in metrics["subgroups"].values():
        # Half a bar of space between one division and the next.
        rows += [(rows[-1][0] + 1.5 + i, g["name"], g) for i, g in enumerate(groups)]
    bar, side, left, right, below = 0.27, 3.9, 1.35, 2.9, 0.62
    width, body = left + side + right, bar * (rows[-1][0] + 1)
    title = f"{task.capitalize()}: accuracy by subgroup"
    subtitle = f"{subtitle}; lines: 95 % intervals by person"
    figure, _ = _figure(width, below + body + 0.1, title, subtitle, notice)
    height = figure.get_figheight()
    axis = figure.add_axes((left / width, below / height, side / width, body / height))
    for at, _, group in rows:
        share, interval = group["accuracy"], group["intervals"]["accuracy"]
        axis.barh(at, share, 0.72, color=SHADES(0.6 if group is metrics else 0.35))
        if interval:
            axis.plot(interval, [at, at], color=INK, linewidth=1.3, marker="|", markersize=6)
        text = f"{percent(share)} %   {group['count']:,} faces, {group['subjects']:,} persons"
        text += "" if interval else ", no interval"
        style: dict[str, Any] = {"fontsize": 8.5, "color": INK, "va": "center"}
        axis.annotate(text, (1, at), (8, 0), textcoords="offset points", **style)
    axis.axvline(metrics["accuracy"], color=INK, linewidth=1, linestyle=":", zorder=0)
    axis.set_yticks([at for at, *_ in rows], [name for _, name, _ in rows], fontsize=9)
    axis.set_ylim(rows[-1][0] + 0.5, -0.5)
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axis.set_xlabel("Accuracy", color=INK)
    quiet(axis)
    axis.grid(visible=False, axis="y")
    axis.grid(axis="x", color="#E4E4E4", linewidth=0.8)
    axis.tick_params(axis="y", length=0)
    return figure


def choose_faces(
    log_probs: np.ndarray, labels: np.ndarray, subjects: np.ndarray
) -> tuple[Group, ...]:
    """Groups for a sheet of faces: surest mistakes, surest right answers, least sure answers.

    At most one face of a person comes into a group: pictures of one person are often so alike
    that one mistake would fill the sheet.

    Args:
        log_probs: [N, C].
        labels: [N]; faces without a label are left out.
        subjects: identifier of the person [N]; `UNKNOWN` counts as a person of its own.
    """
    known = np.flatnonzero(labels != UNKNOWN)
    order = known[np.argsort(-log_probs[known].max(axis=1), kind="stable")]
    right = log_probs[order].argmax(axis=1) == labels[order]

    def one_each(candidates: np.ndarray, rows: int) -> np.ndarray:
        chosen: list[int] = []
        seen: set[int] = set()
        for position in candidates.tolist():
            subject = int(subjects[position])
            if len(chosen) < rows * FACES_PER_ROW and subject not in seen - {UNKNOWN}:
                chosen.append(position)
                seen.add(subject)
        return np.array(chosen, dtype=np.int64)

    mistakes, answers = order[~right], order[right]
    return (
        (f"Surest mistakes, of {len(mistakes):,}", one_each(mistakes, 2)),
        (f"Surest right answers, of {len(answers):,}", one_each(answers, 1)),
        (f"Least sure answers, of {len(order):,}", one_each(order[::-1], 1)),
    )


def face_sheet(
    task: str,
    predictions: dict[str, np.ndarray],
    faces: Callable[[np.ndarray], np.ndarray],
    subtitle: str,
    notice: str,
) -> Figure:
    """Faces with prediction, its probability and the truth.

    Args:
        task: "age" or "gender".
        predictions: `index` [N], `subject_id` [N], `<task>` [N], `<task>_log_probs` [N, C].
        faces: from rows of the data set, int [K], to pictures, uint8 RGB [K, S, S, 3].
        subtitle: model and data set.
        notice: what a viewer has to know about the data, or "".
    """
    labels, log_probs = predictions[task], predictions[f"{task}_log_probs"]
    groups = choose_faces(log_probs, labels, predictions["subject_id"])
    tile, face, heading, caption = 1.32, 1.18, 0.42, 0.44
    lines = [-(-len(chosen) // FACES_PER_ROW) for _, chosen in groups]
    width = 2 * MARGIN + FACES_PER_ROW * tile - (tile - face)
    body = len(groups) * heading + sum(lines) * (face + caption) + 0.1
    title = f"{task.capitalize()}: predictions and truth"
    figure, y = _figure(width, body, title, f"{subtitle}, one face of a person per group", notice)
    height = figure.get_figheight()
    names = TASK_CLASSES[task]

    for (group, chosen), count in zip(groups, lines, strict=True):
        _write(figure, MARGIN, y + 0.25, group, fontsize=12, weight="bold", color=INK)
        y += heading
        pictures = list(faces(predictions["index"][chosen])) if count else []
        for place, (position, picture) in enumerate(zip(chosen, pictures, strict=True)):
            x = MARGIN + place % FACES_PER_ROW * tile
            foot = y + place // FACES_PER_ROW * (face + caption) + face
            axis = figure.add_axes(
                (x / width, 1 - foot / height, face / width, face / height), xticks=[], yticks=[]
            )
            axis.imshow(picture)
            axis.spines[:].set_visible(False)
            predicted = int(log_probs[position].argmax())
            probability = percent(float(np.exp(log_probs[position].max())), 0)
            right = predicted == labels[position]
            text = f"{'✓' if right else '✗'} {names[predicted]}, {probability} %"
            color = RIGHT if right else WRONG
            _write(figure, x, foot + 0.16, text, fontsize=8.5, weight="bold", color=color)
            truth = f"truth: {names[labels[position]]}"
            _write(figure, x, foot + 0.31, truth, fontsize=8.5, color=INK)
        y += count * (face + caption)
    return figure


def _figure(
    width: float, body: float, title: str, subtitle: str, notice: str
) -> tuple[Figure, float]:
    """A figure whose head holds title, subtitle and notice, and the height of that head.

    All lengths are inches; `body` is the height that remains below the head.
    """
    # About 15 letters of 9 points go into an inch.
    letters = int(15 * (width - 2 * MARGIN))
    subtitles, notices = textwrap.wrap(subtitle, letters), textwrap.wrap(notice, letters)
    top = 0.6 + 0.2 * (len(subtitles) + len(notices))
    figure = Figure(figsize=(width, top + body), facecolor="white")
    _write(figure, MARGIN, 0.36, title, fontsize=14, weight="bold", color=INK)
    for row, line in enumerate(subtitles + notices):
        color = FAINT if row < len(subtitles) else WRONG
        _write(figure, MARGIN, 0.6 + 0.2 * row, line, fontsize=9, color=color)
    return figure, top


def _write(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    """Text whose base line starts x inches from the left and y inches from the top."""
    width, height = figure.get_size_inches()
    figure.text(x / width, 1 - y / height, text, va="baseline", **style)


def _cell_text(
    axis: Axes, at: tuple[int, int], text: str, points_above: float, **style: Any
) -> None:
    """Text centred on a cell or that many points above its middle."""
    rise = (0, points_above)
    axis.annotate(text, at, rise, textcoords="offset points", ha="center", va="center", **style)


def _heading(axis: Axes, text: str) -> None:
    axis.set_title(text, loc="left", fontsize=11, color=INK)


def ink_on(color: tuple[float, float, float, float]) -> str:
    """The ink with the better contrast on an sRGB colour, by its approximate luminance."""
    luminance = np.power(color[:3], 2.2) @ (0.2126, 0.7152, 0.0722)
    return INK if luminance > 0.2 else "white"


def series(history: Sequence[dict[str, Any]], name: str) -> Series:
    """Epochs and values of one metric in order; of a step that was logged twice, the later row."""
    rows = {row["step"]: row for row in history if row.get(name) is not None}
    ordered = [rows[step] for step in sorted(rows)]
    return [row["epoch"] for row in ordered], [row[name] for row in ordered]


def _curves(axis: Axes, curves: dict[str, Series], best_epoch: float) -> None:
    """Draws curves over epochs into a panel, with a legend and the chosen epoch."""
    longest = best_epoch
    for label, (epochs, values) in curves.items():
        if epochs:
            # A lone point is no line: it needs its marker.
            marker = "" if label == "training" and len(epochs) > 1 else CURVES[label]["marker"]
            axis.plot(epochs, values, label=label, **CURVES[label] | {"marker": marker})
            longest = max(longest, *epochs)
    axis.axvline(best_epoch, color=INK, linewidth=1, linestyle=":", label="tested step", zorder=1)
    axis.set_xlim(0, 1.03 * longest or 1)
    axis.set_xlabel("Epoch", color=INK)
    axis.xaxis.set_major_locator(MaxNLocator(integer=longest >= 2, nbins=8))
    quiet(axis)
    axis.legend(frameon=False, fontsize=9, labelcolor=INK)


def quiet(axis: Axes) -> None:
    """Faint lines across a panel, and no frame around it."""
    axis.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#999999")
    axis.tick_params(labelcolor=INK, color="#999999")
