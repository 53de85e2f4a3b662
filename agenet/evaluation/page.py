"""A document of headings, texts, tables and images, and its form as an HTML page or as Markdown.

Text is escaped here and in the templates, and nowhere else: names of runs and what their reports
say may contain anything.
"""

import base64
import functools
import hashlib
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jinja2


@dataclass(frozen=True)
class Heading:
    """The anchor is one of our own; those of level 2 make the table of contents."""

    level: int
    text: str
    anchor: str = ""


@dataclass(frozen=True)
class Text:
    """A paragraph; `kind` is "", "note" or "warning"."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Listing:
    """A numbered list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names, each with a text."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    """Text to be shown as it is, such as a command."""

    text: str
    language: str = ""


@dataclass(frozen=True)
class Cell:
    """Text, smaller text below it, and before it a dot of a run's colour."""

    text: str
    more: str = ""
    strong: bool = False
    color: str = ""


NONE = Cell("–")
Row = Sequence[Cell | str] | str


@dataclass(frozen=True)
class Table:
    """A row that is a string is a heading above the rows that follow it."""

    header: Sequence[str]
    rows: Sequence["Row"]
    left: frozenset[int] = frozenset({0})  # columns of words


@dataclass(frozen=True)
class Image:
    """An image; the HTML page contains `svg` where there is one, otherwise `content`.

    Attributes:
        name: of its file beside the Markdown page, one of our own.
        content: PNG or WebP.
        alt: what it shows, for readers who cannot see it.
        caption: shown below it.
        svg: an element that contains nothing of what a run could have put into it.
        wide: needs its width: phones scroll it.
    """

    name: str
    content: bytes
    alt: str
    caption: str = ""
    svg: str = ""
    wide: bool = False

    @property
    def format(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def base64(self) -> str:
        return base64.b64encode(self.content).decode()


@dataclass(frozen=True)
class Grid:
    """Images side by side where there is room; `kind` is "grid", or "faces" for small ones."""

    images: Sequence[Image]
    kind: str = "grid"


@dataclass(frozen=True)
class Details:
    """Folded away until the reader opens it."""

    summary: str
    nodes: Sequence["Node"]


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix whose cells show their faces in the `Browser` of the page.

    Attributes:
        task: "age" or "gender".
        predictor: its place among those of the browser.
        classes: the names, C.
        counts: faces [C][C] of every pair of true (rows) and predicted class.
    """

    task: str
    predictor: int
    classes: Sequence[str]
    counts: Sequence[Sequence[int]]

    def share(self, row: int, column: int) -> float:
        """Of the faces of a true class, from 0 to 1."""
        return self.counts[row][column] / max(sum(self.counts[row]), 1)


@dataclass(frozen=True)
class Card:
    """A face of a `Browser`: its image, lines of text below it, and what its filters look at."""

    image: Image
    lines: Sequence[Cell]
    data: str  # JSON, see templates/browser.js


@dataclass(frozen=True)
class Choice:
    """A filter of a `Browser`: its key, its label, and (value, text) of each option by group.

    A group without a name stands outside of all.
    """

    key: str
    label: str
    options: Sequence[tuple[str, Sequence[tuple[str, str]]]]


@dataclass(frozen=True)
class Browser:
    """Faces that a reader filters and sorts; without JavaScript all are shown.

    Attributes:
        cards: the faces.
        choices: the filters.
        classes: names of the classes by task, JSON.
    """

    cards: Sequence[Card]
    choices: Sequence[Choice]
    classes: str


Node = Heading | Text | Listing | Facts | Code | Table | Image | Grid | Details | Matrix | Browser


def images(nodes: Iterable[Node]) -> Iterable[Image]:
    """All images of a document, in order."""
    for node in nodes:
        if isinstance(node, Image):
            yield node
        elif isinstance(node, Grid):
            yield from node.images
        elif isinstance(node, Details):
            yield from images(node.nodes)
        elif isinstance(node, Browser):
            yield from (card.image for card in node.cards)


@functools.cache
def templates() -> jinja2.Environment:
    """The templates of pages, which escape every text; `page.html.j2` is the one to extend."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("agenet.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = lambda node: type(node).__name__
    return environment


def to_html(title: str, nodes: Sequence[Node]) -> str:
    """One page that loads nothing from elsewhere, with links to its sections near the top.

    Only a page with a `Browser` has a script, which is the one whose hash its policy names.
    """
    sections = [node for node in nodes if isinstance(node, Heading) and node.level == 2]
    start = nodes.index(sections[0]) if sections else len(nodes)
    has_browser = any(isinstance(node, Browser) for node in nodes)
    script = _read_script() if has_browser else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        templates()
        .get_template("page.html.j2")
        .render(
            title=title,
            head=nodes[:start],
            sections=sections,
            body=nodes[start:],
            script=script,
            script_source=f"; script-src 'sha256-{digest}'" if script else "",
        )
    )


@functools.cache
def _read_script() -> str:
    loader = templates().loader
    assert loader is not None
    return loader.get_source(templates(), "browser.js")[0].replace("\r\n", "\n")


def to_markdown(nodes: Sequence[Node], folder: str = ".") -> str:
    """The same in GitHub's Markdown, whose images are files in a folder beside it."""
    return "\n\n".join(_markdown(node, folder) for node in nodes) + "\n"


def _markdown(node: Node, folder: str) -> str:
    match node:
        case Heading():
            return f"{'#' * node.level} {_plain(node.text)}"
        case Text():
            text = _plain(node.text)
            return f"> **{text}**" if node.kind == "warning" else text
        case Listing():
            return "\n".join(f"{i}. {_plain(item)}" for i, item in enumerate(node.items, 1))
        case Facts():
            return "\n".join(f"- {_plain(name)}: {_plain(text)}" for name, text in node.rows)
        case Code():
            longest = max(map(len, re.findall("`+", node.text)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"{fence}{node.language}\n{node.text}\n{fence}"
        case Table():
            return _markdown_table(node)
        case Grid():
            return "\n\n".join(_markdown(image, folder) for image in node.images)
        case Details():
            inner = to_markdown(node.nodes, folder)
            summary = html.escape(node.summary)
            return f"<details>\n<summary>{summary}</summary>\n\n{inner}\n</details>"
        case Matrix():
            rows = [
                [name, *(f"{count:,}" for count in counts)]
                for name, counts in zip(node.classes, node.counts, strict=True)
            ]
            return _markdown_table(Table(["true \\ predicted", *node.classes], rows))
        case Browser():
            return f"The HTML page shows {len(node.cards):,} faces."
        case Image():
            path = node.name if folder == "." else f"{folder}/{node.name}"
            image = f"![{_plain(node.alt)}]({path})"
            return f"{image}\n\n{_plain(node.caption)}" if node.caption else image


def _plain(text: str) -> str:
    """Text in which Markdown and HTML see nothing but letters."""
    text = (
        re.sub(r"&(?=[#\w])", "&amp;", " ".join(text.split()))
        .replace("<", "&lt;")
        .replace(">", "&gt;")
    )
    # An underscore between two letters is none of Markdown's.
    return re.sub(r"([\\`*\[\]|~$#!]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)


def _markdown_table(table: Table) -> str:
    rule = ["---" if column in table.left else "---:" for column in range(len(table.header))]
    lines = [[*map(_plain, table.header)], rule]
    for row in table.rows:
        if isinstance(row, str):
            lines.append([f"*{_plain(row)}*", *[""] * (len(table.header) - 1)])
        else:
            lines.append([_markdown_cell(cell) for cell in row])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _markdown_cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return _plain(cell)
    text = f"**{_plain(cell.text)}**" if cell.strong else _plain(cell.text)
    if not cell.more:
        return text
    # A deviation needs no brackets.
    return f"{text} {_plain(cell.more)}" if cell.more[0] == "±" else f"{text} ({_plain(cell.more)})"
