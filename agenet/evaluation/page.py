"""A document of headings, texts, tables and pictures, as one HTML page or as Markdown.

All that is text is escaped here, and only here: run names and what a report says may hold
anything.
"""

import base64
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

STYLE = """
:root { --page: #ffffff; --ink: #1d2126; --faint: #5f6872; --line: #dfe3e8; --band: #f3f5f8;
  --warn: #8a3b00; --warn-page: #fff3e6; --link: #00588a; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e8eaed; --faint: #a3abb5;
  --line: #343a42; --band: #1f242a; --warn: #ffbe85; --warn-page: #33210f; --link: #7cc4f2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 80rem; background: var(--page);
  color: var(--ink); font: 1.0625rem/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.55rem; margin: 3rem 0 .6rem; padding-top: .6rem;
  border-top: 2px solid var(--line); }
h3 { font-size: 1.2rem; margin: 2rem 0 .4rem; }
p, ul, ol, figcaption { max-width: 52rem; }
p { margin: .5rem 0 .9rem; }
a { color: var(--link); }
nav ul { list-style: none; padding: 0; margin: 1rem 0; display: flex; flex-wrap: wrap;
  gap: .3rem 1.4rem; max-width: none; }
.note { color: var(--faint); font-size: .94rem; }
.warning { background: var(--warn-page); color: var(--warn); border-left: .35rem solid;
  padding: .65rem 1rem; border-radius: .25rem; max-width: none; }
.table { overflow-x: auto; margin: .8rem 0 1rem; }
table { border-collapse: collapse; min-width: 60%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: baseline; white-space: nowrap; }
th { color: var(--faint); font-weight: 600; font-size: .9rem; line-height: 1.3;
  vertical-align: bottom; white-space: normal; }
th.left, td.left { text-align: left; }
td.left:first-child { white-space: normal; min-width: 14rem; }
tr.band td { text-align: left; }
tr.band td { background: var(--band); font-weight: 600; font-size: .94rem; }
td small { display: block; color: var(--faint); font-size: .82rem; }
td b { font-size: 1.1em; }
.key { display: inline-block; min-width: 1.6em; height: 1.6em; line-height: 1.6em;
  border-radius: .8em; text-align: center; font-weight: 700; font-size: .85em; margin-right: .5em; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
  gap: .5rem 1.5rem; }
figure { margin: 1rem 0 1.4rem; overflow-x: auto; }
figure svg, figure img { display: block; max-width: 100%; height: auto; }
figure img { background: #fff; border-radius: .25rem; }
figcaption { color: var(--faint); font-size: .94rem; margin-top: .3rem; }
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; }
@media print { body { max-width: none; } figure, tr { break-inside: avoid; } }
@media (max-width: 40rem) { figure.wide svg { min-width: 44rem; max-width: none; } }
"""


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
class Cell:
    """Text, what stands below it in small letters, and the key of a run before it."""

    text: str
    more: str = ""
    strong: bool = False
    key: str = ""
    colors: tuple[str, str] = ("", "")  # of the key: ground and letter


@dataclass(frozen=True)
class Table:
    """A row that is one text alone is a band over the rows that follow it."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell] | str]
    left: frozenset[int] = frozenset({0})  # columns of words


@dataclass(frozen=True)
class Picture:
    """`svg` stands in the page itself, without it the picture does.

    Attributes:
        name: of its file beside the Markdown page, one of our own.
        content: PNG or WebP.
        alt: what it shows, for who cannot see it.
        caption: what to know beside it.
        svg: an element, free of anything that a run could have put into it.
        wide: needs its width: phones scroll it.
    """

    name: str
    content: bytes
    alt: str
    caption: str = ""
    svg: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Grid:
    """Pictures beside each other where there is room."""

    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Details:
    """Shown when asked for."""

    summary: str
    nodes: Sequence["Node"]


Node = Heading | Text | Listing | Table | Picture | Grid | Details


def pictures(nodes: Iterable[Node]) -> Iterable[Picture]:
    """All pictures of a document, in order."""
    for node in nodes:
        if isinstance(node, Picture):
            yield node
        elif isinstance(node, Grid):
            yield from node.pictures
        elif isinstance(node, Details):
            yield from pictures(node.nodes)


def to_html(title: str, nodes: Sequence[Node]) -> str:
    """One page that loads nothing: the browser is told to refuse anything from elsewhere."""
    contents = "".join(
        f'<li><a href="#{node.anchor}">{_text(node.text)}</a></li>'
        for node in nodes
        if isinstance(node, Heading) and node.level == 2
    )
    body = "\n".join(map(_html, nodes))
    navigation = f"<nav><ul>{contents}</ul></nav>" if contents else ""
    # After the first heading and what stands below it.
    start = body.find("<h2")
    start = len(body) if start < 0 else start
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{body[:start]}{navigation}\n{body[start:]}\n</body>\n</html>\n"
    )


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _html(node: Node) -> str:
    if isinstance(node, Heading):
        anchor = f' id="{node.anchor}"' if node.anchor else ""
        return f"<h{node.level}{anchor}>{_text(node.text)}</h{node.level}>"
    if isinstance(node, Text):
        kind = f' class="{node.kind}"' if node.kind else ""
        return f"<p{kind}>{_text(node.text)}</p>"
    if isinstance(node, Listing):
        return "<ol>" + "".join(f"<li>{_text(item)}</li>" for item in node.items) + "</ol>"
    if isinstance(node, Table):
        return _html_table(node)
    if isinstance(node, Grid):
        return '<div class="grid">' + "\n".join(map(_html, node.pictures)) + "</div>"
    if isinstance(node, Details):
        inner = "\n".join(map(_html, node.nodes))
        return f"<details><summary>{_text(node.summary)}</summary>\n{inner}\n</details>"
    image = node.svg.replace("<svg", f'<svg role="img" aria-label="{_text(node.alt)}"', 1)
    if not image:
        kind = node.name.rpartition(".")[2]
        data = base64.b64encode(node.content).decode()
        image = f'<img alt="{_text(node.alt)}" src="data:image/{kind};base64,{data}">'
    caption = f"<figcaption>{_text(node.caption)}</figcaption>" if node.caption else ""
    wide = ' class="wide"' if node.wide else ""
    return f"<figure{wide}>{image}{caption}</figure>"


def _html_table(table: Table) -> str:
    def side(column: int) -> str:
        return ' class="left"' if column in table.left else ""

    head = "".join(
        f'<th scope="col"{side(column)}>{_text(name)}</th>'
        for column, name in enumerate(table.header)
    )
    rows = []
    for row in table.rows:
        if isinstance(row, str):
            band = f'<td colspan="{len(table.header)}">{_text(row)}</td>'
            rows.append(f'<tr class="band">{band}</tr>')
            continue
        cells = "".join(
            f"<td{side(column)}>{_html_cell(cell)}</td>" for column, cell in enumerate(row)
        )
        rows.append(f"<tr>{cells}</tr>")
    body = "\n".join(rows)
    return (
        '<div class="table" tabindex="0" role="region" aria-label="table"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _html_cell(cell: Cell) -> str:
    text = f"<b>{_text(cell.text)}</b>" if cell.strong else _text(cell.text)
    if cell.key:
        ground, letter = cell.colors
        style = f"background:{ground};color:{letter}"
        text = f'<span class="key" style="{style}">{_text(cell.key)}</span>{text}'
    return text + (f"<small>{_text(cell.more)}</small>" if cell.more else "")


def to_markdown(nodes: Sequence[Node], folder: str) -> str:
    """The same in GitHub's Markdown, with its pictures in a folder beside it."""
    return "\n\n".join(_markdown(node, folder) for node in nodes) + "\n"


def _plain(text: str) -> str:
    """Text in which Markdown and HTML see nothing but letters."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$#!])", r"\\\1", text)


def _markdown(node: Node, folder: str) -> str:
    if isinstance(node, Heading):
        return f"{'#' * node.level} {_plain(node.text)}"
    if isinstance(node, Text):
        text = _plain(node.text)
        return f"> **{text}**" if node.kind == "warning" else text
    if isinstance(node, Listing):
        return "\n".join(f"{i}. {_plain(item)}" for i, item in enumerate(node.items, 1))
    if isinstance(node, Table):
        columns = range(len(node.header))
        rule = ["---" if column in node.left else "---:" for column in columns]
        lines = [[_plain(name) for name in node.header], rule]
        for row in node.rows:
            if isinstance(row, str):
                lines.append([f"*{_plain(row)}*", *[""] * (len(node.header) - 1)])
            else:
                lines.append([_markdown_cell(cell) for cell in row])
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    if isinstance(node, Grid):
        return "\n\n".join(_markdown(picture, folder) for picture in node.pictures)
    if isinstance(node, Details):
        inner = to_markdown(node.nodes, folder)
        return f"<details>\n<summary>{_text(node.summary)}</summary>\n\n{inner}\n</details>"
    image = f"![{_plain(node.alt)}]({folder}/{node.name})"
    return f"{image}\n\n{_plain(node.caption)}" if node.caption else image


def _markdown_cell(cell: Cell) -> str:
    text = f"**{_plain(cell.text)}**" if cell.strong else _plain(cell.text)
    text = f"**{_plain(cell.key)}** {text}" if cell.key else text
    if not cell.more:
        return text
    # A deviation needs no brackets.
    return f"{text} {_plain(cell.more)}" if cell.more[0] == "±" else f"{text} ({_plain(cell.more)})"
