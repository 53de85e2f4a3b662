"""Compares finished runs: one HTML page that needs nothing else, and the same in Markdown.

agenet report RUN RUN ... [--out=FOLDER] [--no-faces]
"""

import re
from collections.abc import Sequence
from pathlib import Path

from agenet.errors import ArgumentParser, UserError, one_line_errors

PAGE, TEXT, PICTURES = "comparison.html", "comparison.md", "comparison_pictures"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, reads the runs, and writes the pages when all is known.

    Raises:
        UserError: a run cannot be compared, or there is no place for the pages.
    """
    parser = ArgumentParser(
        prog="agenet report",
        description="Compares finished runs: one HTML page that needs nothing else, and the same "
        "in Markdown.",
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="--workdir of a finished run, or of agenet folds; LABEL=RUN to call it LABEL",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, default=Path("comparison"), help="for the pages"
    )
    parser.add_argument("--no-faces", action="store_true", help="leave the sheets of faces out")
    args = parser.parse_args(arguments)
    if any(part.exists() and not part.is_dir() for part in (args.out, *args.out.parents)):
        raise UserError(f"--out {args.out} is no folder")
    # Imported here, not above: help and mistyped flags must not wait for Matplotlib.
    from agenet.evaluation.comparison.contents import compose
    from agenet.evaluation.comparison.runs import read_runs
    from agenet.evaluation.page import pictures, to_html, to_markdown
    from agenet.files import write_file

    title, nodes = compose(read_runs(args.runs), faces=not args.no_faces)
    drawn = {picture.name: picture.content for picture in pictures(nodes)}
    html, markdown = to_html(title, nodes), to_markdown(nodes, PICTURES)

    folder = args.out / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in drawn.items():
        write_file(folder / name, content)
    write_file(args.out / TEXT, markdown.encode())
    write_file(args.out / PAGE, html.encode())
    # Of an earlier comparison: faces, it may be, that are to be seen no longer.
    for path in folder.iterdir():
        if path.name not in drawn and re.fullmatch(r"g\d+-[\w-]+\.(png|webp)", path.name):
            path.unlink()
    print(f"{args.out / PAGE} ({len(html) / 1e6:.1f} MB)\n{args.out / TEXT}")


if __name__ == "__main__":
    with one_line_errors():
        main()
