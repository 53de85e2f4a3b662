"""Writes the comparison of several runs: an HTML page, the same in Markdown, and its images."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agenet.evaluation.comparison.contents import compose
from agenet.evaluation.comparison.runs import read_runs
from agenet.evaluation.page import images, to_html, to_markdown
from agenet.files import write_file

PAGE, TEXT, IMAGES = "comparison.html", "comparison.md", "comparison_pictures"


def write_comparison(
    runs: Sequence[str], out: Path, *, faces: bool, added_fields: Mapping[str, Any]
) -> tuple[Path, Path]:
    """Reads the runs, then writes the pages into the folder `out`.

    Args:
        runs: folders of finished runs or of `agenet folds`; "LABEL=FOLDER" gives a label.
        out: created if it does not exist.
        faces: show sheets of faces.
        added_fields: the default of each field that configs of earlier versions lack.

    Returns:
        The HTML page and the Markdown page.

    Raises:
        UserError: a run cannot be compared.
    """
    title, nodes = compose(read_runs(runs), faces=faces, added_fields=added_fields)
    drawn = {image.name: image.content for image in images(nodes)}
    html, markdown = to_html(title, nodes), to_markdown(nodes, IMAGES)

    folder = out / IMAGES
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
