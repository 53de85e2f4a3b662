"""The results of a search: sweep.json, sweep.md, sweep.html and two figures."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agenet.errors import printable
from agenet.evaluation.figure_style import to_image
from agenet.evaluation.page import (
    NONE,
    Cell,
    Code,
    Facts,
    Heading,
    Listing,
    Node,
    Table,
    Text,
    images,
    to_html,
    to_markdown,
)
from agenet.evaluation.search_figures import Line, importance_bars, parallel_coordinates
from agenet.files import write_file, write_json
from agenet.runs import series
from agenet.runs.series import FIGURES, both

_TOP = 10  # trials that the terminal shows


@dataclass(frozen=True)
class Row:
    """What the tables show of a trial; `state` is complete, pruned, fail or running."""

    number: int
    state: str
    value: float | None
    params: dict[str, Any]
    validation: dict[str, float]
    test: dict[str, float]
    seconds: float | None
    flags: tuple[str, ...]
    workdir: str
    validations: int
    error: str
    conditions: str
    notice: str


@dataclass(frozen=True)
class Page:
    """What is known of a search.

    Attributes:
        title: network and data set.
        command: that of the search.
        metric: by which trials are compared.
        minimizes: whether small values are good.
        space: the range of each parameter in words.
        wanted: the number of trials.
        rows: the trials, by number.
        importance: the share of each parameter, the largest first.
    """

    title: str
    command: str
    metric: str
    minimizes: bool
    space: Mapping[str, str]
    wanted: int
    rows: Sequence[Row]
    importance: Mapping[str, float]

    @property
    def ranked(self) -> list[Row]:
        """Complete trials from the best to the worst, then the others."""
        complete = [row for row in self.rows if row.state == "complete" and row.value is not None]
        complete.sort(key=lambda row: row.value or 0.0, reverse=not self.minimizes)
        return complete + [row for row in self.rows if row not in complete]

    @property
    def best(self) -> Row | None:
        first = self.ranked[:1]
        return first[0] if first and first[0].state == "complete" else None

    def count(self, state: str) -> int:
        return sum(row.state == state for row in self.rows)


def write_page(page: Page, workdir: Path) -> None:
    """Writes sweep.html, sweep.md and the figures, each atomically."""
    title, nodes = _compose(page)
    for image in images(nodes):
        write_file(workdir / image.name, image.content)
    write_file(workdir / "sweep.html", to_html(title, nodes).encode())
    write_file(workdir / "sweep.md", to_markdown(nodes).encode())


def write_results(page: Page, workdir: Path) -> None:
    """Writes sweep.json."""
    best = page.best
    content = {
        "command": page.command,
        "metric": page.metric,
        "direction": "minimize" if page.minimizes else "maximize",
        "complete": len(page.rows) >= page.wanted and not page.count("running"),
        "space": dict(page.space),
        "best": best and {"trial": best.number, "value": best.value, "command": _train_again(best)},
        "importance": dict(page.importance),
        "trials": [asdict(row) for row in page.rows],
    }
    write_json(workdir / "sweep.json", content)


def markdown_summary(page: Page) -> str:
    """The best trials, for the terminal."""
    header, rows = _table(page)
    parts = [f"# {_heading(page)}", series.table(header, rows[:_TOP])]
    if page.best:
        parts.append(f"To train the best again:\n\n```sh\n{_train_again(page.best)}\n```")
    return "\n\n".join(parts)


def _heading(page: Page) -> str:
    counts = [(page.count("pruned"), "pruned"), (page.count("fail"), "failed")]
    counts.append((page.count("running"), "under way"))
    more = "".join(f", {count} {what}" for count, what in counts if count)
    return f"Search: {page.title}, {len(page.rows)} of {page.wanted} trials{more}"


def _compose(page: Page) -> tuple[str, list[Node]]:
    title = _heading(page)
    nodes: list[Node] = [Heading(1, title)]
    nodes += [Text(n, "warning") for n in dict.fromkeys(r.notice for r in page.rows) if n]
    tested = [r.conditions.replace("`", "") for r in page.rows if r.conditions]
    nodes += [Text(text) for text in dict.fromkeys(tested)]
    nodes.append(
        Text(
            f"Trials are compared by {page.metric}, "
            f"{'the smaller' if page.minimizes else 'the larger'} the better. Accuracies in per "
            "cent, gender / age. The test figures are for information: trials chosen by them are "
            "no longer tested on unseen data, and the best of many trials is better on validation "
            "data than it will be on others. Pruned: stopped because its validations were worse "
            "than those of others; its value is the last one. Time: wall clock, from the start of "
            "a trial's process to its end."
        )
    )
    if page.best:
        nodes += [
            Heading(2, "Best trial", "best"),
            Text(f"Trial {page.best.number}: {page.metric} {page.best.value:.4f}."),
            Facts([(name, show_value(value)) for name, value in page.best.params.items()]),
            Text("To train it again:"),
            Code(_train_again(page.best), "sh"),
        ]
    nodes += _figures(page)
    header, rows = _table(page)
    best = page.best
    cells: list[list[Cell | str]] = [
        [Cell(row[0], strong=True), *row[1:]] if best and row is rows[0] else [*row] for row in rows
    ]
    nodes += [Heading(2, "Trials", "trials"), Table(header, cells)]
    if failed := [f"trial {row.number}: {row.error}" for row in page.rows if row.error]:
        nodes += [Heading(2, "Failed", "failed"), Listing(failed)]
    nodes += [Heading(2, "Search space", "space"), Facts([*page.space.items()])]
    nodes += [Heading(2, "Command", "command"), Code(page.command, "sh")]
    return title, nodes


def _figures(page: Page) -> list[Node]:
    notice = next((row.notice for row in page.rows if row.notice), "")
    subtitle = f"{page.title}, {page.count('complete')} complete trials by {page.metric}"
    nodes: list[Node] = []
    if page.importance:
        image = to_image(
            importance_bars(page.importance, subtitle, notice),
            "importance",
            "The importance of each parameter as a bar",
            "How much the values of the best trials differ from those of all (PED-ANOVA). Of few "
            "trials it says little.",
        )
        nodes += [Heading(2, "Importance", "importance"), image]
    lines = [
        Line(row.params, row.value, row.state == "complete")
        for row in page.rows
        if row.value is not None and row.state in ("complete", "pruned")
    ]
    if len(lines) > 1:
        logarithmic = [name for name, text in page.space.items() if text.endswith("logarithmic")]
        figure = parallel_coordinates(
            lines,
            page.metric.removeprefix("validation/"),
            page.minimizes,
            logarithmic,
            [*page.importance],
            subtitle,
            notice,
        )
        image = to_image(
            figure,
            "parallel",
            "A line for each trial through its parameters to its value",
            "The deeper the blue, the better. The best is thick and orange, and its value on top. "
            "Dotted: pruned.",
        )
        nodes += [Heading(2, "Trials by their parameters", "parallel"), image]
    return nodes


def _table(page: Page) -> tuple[list[str], list[list[str]]]:
    """The header and a row for each trial, the best first."""
    names = [*page.importance, *(name for name in page.space if name not in page.importance)]
    header = ["Trial", page.metric.removeprefix("validation/"), *map(printable, names)]
    header += ["Validation", "Test", "Time, s"]
    rows = []
    for row in page.ranked:
        value = NONE.text if row.value is None else f"{row.value:.4f}"
        if row.state != "complete":
            value = {"fail": "failed, see below", "running": "under way"}.get(row.state, value)
        value += f" (pruned after {row.validations})" * (row.state == "pruned")
        params = [
            show_value(row.params[name]) if name in row.params else NONE.text for name in names
        ]
        validation = both([row.validation.get(f"{task}_{name}") for task, name in FIGURES])
        test = both([row.test.get(f"{task}_{name}") for task, name in FIGURES])
        time = NONE.text if row.seconds is None else f"{row.seconds:,.0f}"
        rows.append([str(row.number), value, *params, validation, test, time])
    return header, rows


def show_value(value: Any) -> str:
    """A hyper-parameter in a table or a line."""
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def _train_again(row: Row) -> str:
    """The command that trains a trial again, elsewhere."""
    return shlex.join(["agenet", "train", *row.flags, f"--workdir={row.workdir}-again"])
