"""Writes the comparison of several runs: an HTML page, the same in Markdown, and its images."""

import re
from collections.abc import Sequence
from pathlib import Path

from agenet.evaluation.comparison.contents import compose
from agenet.evaluation.comparison.runs import read_runs
from agenet.evaluation.page import pictures, to_html, to_markdown
from agenet.files import write_file

PAGE, TEXT, PICTURES = "comparison.html", "comparison.md", "comparison_pictures"


def write_comparison(runs: Sequence[str], out: Path, faces: bool) -> tuple[Path, Path]:
    """Reads the runs, then writes the pages into the folder `out`.

    Args:
        runs: folders of finished runs or of `agenet folds`; "LABEL=FOLDER" gives a label.
        out: created if it does not exist.
        faces: show sheets of faces.

    Returns:
        The HTML page and the Markdown page.

    Raises:
        UserError: a run cannot be compared.
    """
    title, nodes = compose(read_runs(runs), faces=faces)
    drawn = {picture.name: picture.content for picture in pictures(nodes)}
    html, markdown = to_html(title, nodes), to_markdown(nodes, PICTURES)

    folder = out / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in drawn.items():
        write_file(folder / name, content)
    write_file(out / TEXT, markdown.encode())
    write_file(out / PAGE, html.encode())
    # Images of an earlier comparison may show faces that are to be seen no longer.
    for path in folder.iterdir():
        if path.name not in drawn and re.fullmatch(r"g\d+-[\w-]+\.(png|webp)", path.name):
            path.unlink()
    return out / PAGE, out / TEXT
