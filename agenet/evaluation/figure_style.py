"""Colours and axes that all figures share, and figures as images of a page.

No figure is registered with Matplotlib's global state, so that a process that draws many keeps
none. The palette is that of Okabe & Ito, distinct for colour-blind readers; wherever colour carries
meaning a line style or a marker does, too.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from agenet.evaluation.page import Image

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1")
DASHES = ("-", "--", ":")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
CORRECT, WRONG = "#00664B", "#B34700"
INK, FAINT, EDGE, GRID = "#222222", "#767676", "#999999", "#E4E4E4"
SHADES = matplotlib.colormaps["Blues"]
MARGIN = 0.25  # inches
MIN_IN_BIN = 10  # faces in a bin of a reliability diagram that its line goes through
# The page's own colours take the place of these, so that a figure follows light and dark.
_OF_PAGE = {INK: "--ink", FAINT: "--faint", EDGE: "--faint", GRID: "--line", WRONG: "--warn"}
# Text on a shade has the same colour whatever the page's are.
_DARK, _LIGHT = "#1b1b1b", "#fdfdfd"
# Identifiers of groups, the same in every figure; nothing refers to them.
_GROUP_ID = re.compile(
    r' id="(figure|axes|patch|text|line2d|[xy]tick|matplotlib\.axis|legend|[A-Z][A-Za-z]+)_\d+"'
)


def short_text(text: str, letters: int) -> str:
    """The text, cut where it is longer, in which Matplotlib sees no formula between dollars."""
    cut = text if len(text) <= letters else text[: letters - 1] + "…"
    return cut.replace("$", r"\$")


def text_color_on(background: str | tuple[float, float, float, float]) -> str:
    """Black or white, whichever has the better contrast, by the approximate luminance of sRGB."""
    red, green, blue = (channel**2.2 for channel in matplotlib.colors.to_rgb(background))
    return _DARK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.2 else _LIGHT


def style_axes(axes: Axes, values: str = "y") -> None:
    """Draws faint grid lines for the axis of values, "x" or "y", and no frame."""
    axes.grid(axis="x" if values == "x" else "y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    if values == "x":
        axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(EDGE)
    axes.tick_params(labelcolor=INK, color=EDGE)


def titled_figure(
    width: float, body: float, title: str, subtitle: str, notice: str
) -> tuple[Figure, float]:
    """A figure with title, subtitle and notice at its top, and the height of these.

    All lengths are inches; `body` is the height that remains below. An empty notice takes no room.
    """
    # About 15 letters of 9 points go into an inch.
    letters = int(15 * (width - 2 * MARGIN))
    subtitles, notices = textwrap.wrap(subtitle, letters), textwrap.wrap(notice, letters)
    top = 0.6 + 0.2 * (len(subtitles) + len(notices))
    figure = Figure(figsize=(width, top + body), facecolor="white")
    write(figure, MARGIN, 0.36, title, fontsize=14, weight="bold", color=INK)
    for row, line in enumerate(subtitles + notices):
        color = FAINT if row < len(subtitles) else WRONG
        write(figure, MARGIN, 0.6 + 0.2 * row, line, fontsize=9, color=color)
    return figure, top


def write(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    """Writes text whose baseline starts x inches from the left and y inches from the top."""
    width, height = figure.get_size_inches()
    # Between two dollars Matplotlib would see a formula.
    text = text.replace("$", r"\$")
    figure.text(x / width, 1 - y / height, text, va="baseline", **style)


def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes whose place and size are given in inches from the lower left corner."""
    total, tall = figure.get_size_inches()
    return figure.add_axes((left / total, bottom / tall, width / total, height / tall))


def title_axes(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=12, color=INK, weight="bold")


def widen(axes: Axes, span: float = 0.1) -> None:
    """Makes the y axis of shares span at least this much: small differences should look small."""
    low, high = axes.get_ylim()
    spare = max(0.0, span - (high - low)) / 2
    axes.set_ylim(low - spare, high + spare)


def percent_axis(axis: Axis) -> None:
    """Shows shares from 0 to 1 in per cent."""
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6):g} %"))


def to_png(figure: Figure) -> bytes:
    """On white, 150 dots to the inch."""
    png = io.BytesIO()
    with _drawing("agenet"):
        figure.savefig(png, format="png", dpi=150, facecolor="white")
    return png.getvalue()


def to_svg(figure: Figure, name: str) -> str:
    """An element to stand in a page, whose ink and lines take the page's colours.

    Text is drawn as outlines: the page holds no letter of a run's name, and looks the same
    wherever it is opened.

    Args:
        figure: to draw.
        name: unique in the page, to make the identifiers of the figure's parts unique.
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


def to_image(figure: Figure, name: str, alt: str, caption: str = "") -> Image:
    """An image of a page, and the same in a file called `name`.png."""
    wide = figure.get_figwidth() > 7
    return Image(f"{name}.png", to_png(figure), alt, caption, to_svg(figure, name), wide)


def series(history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Epochs and values of one metric in order; of a step that was logged twice, the later row."""
    rows = {row["step"]: row for row in history if row.get(name) is not None}
    ordered = [rows[step] for step in sorted(rows)]
    return [row["epoch"] for row in ordered], [row[name] for row in ordered]


@contextmanager
def _drawing(salt: str) -> Iterator[None]:
    with (
        matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": salt}),
        warnings.catch_warnings(),
    ):
        # A name in letters that the font lacks: the tables show it in the reader's own.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield
