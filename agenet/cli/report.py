"""`agenet report`: compares finished runs."""

import sys
from pathlib import Path

import click

from agenet.cli import options
from agenet.errors import UserError, require_packages, say
from agenet.files import is_address


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--out",
    metavar="FOLDER",
    type=options.PATH,
    help="Folder for the pages (default: comparison).",
)
@click.option("--no-faces", is_flag=True, help="Leave the sheets of faces out.")
def command(runs: tuple[str, ...], out: Path | None, no_faces: bool) -> None:
    """Compare finished runs on one page, in HTML and Markdown.

    RUN is the folder of a finished run or of agenet folds, or the address of a run, such as
    s3://bucket/runs/a; LABEL=RUN names it LABEL on the page.
    The HTML page needs no other files. Of a single run, the place of its own report is shown.
    """
    if len(runs) == 1 and out is None:
        run = Path(runs[0])
        if is_address(run):
            from agenet.evaluation.comparison.runs import find_run

            run = find_run(run)
        if (run / "report.json").is_file():
            _show_report(run, runs[0])
            return
    out = out or Path("comparison")
    if any(part.exists() and not part.is_dir() for part in (out, *out.parents)):
        raise UserError(f"--out {out} is not a folder")
    require_packages("train", "agenet report", "jinja2", "matplotlib")
    from agenet.evaluation.comparison.pages import write_comparison
    from agenet.runs.identity import ADDED_FIELDS

    page, text = write_comparison(runs, out, faces=not no_faces, added_fields=ADDED_FIELDS)
    say(f"{page} ({page.stat().st_size / 1e6:.1f} MB)", text, file=sys.stdout)


def _show_report(run: Path, name: str) -> None:
    page = run / "report.html"
    missing = f"{name} has no report.html; to write it: agenet evaluate --workdir={name}"
    next_ = f"to compare it with other runs: agenet report {name} OTHER_RUN ... --out=comparison"
    say(page if page.is_file() else missing, next_, file=sys.stdout)
