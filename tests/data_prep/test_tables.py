from pathlib import Path

import pytest

from agenet.errors import UserError
from data_prep import tables
from data_prep.tables import read_table

COLUMNS = ["file", "age", "gender"]
ROWS = [["a.jpg", "(25, 32)", "f"], ["b ä.jpg", "", "m"]]


def read(path: Path) -> list[list[str]]:
    return [row for _, row in read_table(path, COLUMNS, "a table")]


def text(separator: str = "\t", end: str = "\n") -> str:
    return end.join([separator.join(row) for row in [COLUMNS, *ROWS]]) + end


@pytest.mark.parametrize(
    "content",
    [
        text().encode(),
        text(end="\r\n").encode(),
        text(end="\r").encode(),
        text().rstrip("\n").encode(),
        text(end="\n\n \n\t\t\n").encode(),
        ("\n" + text()).encode(),
        *(text().encode(codec) for codec in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32")),
        text().replace("\n", " \n").replace("\t", " \t ").encode(),
        text().replace("\n", "\t\t\n").replace("\t\t\n", "\n", 1).encode(),
        text(";").encode(),
        text(",").replace("(25, 32)", '"(25, 32)"').encode(),
        text().replace("(25, 32)", '"(25, 32)"').encode(),
        b"\tfile\tage\tgender\n0\ta.jpg\t(25, 32)\tf\n1\tb \xc3\xa4.jpg\t\tm\n",
        b"gender\tfile\tage\nf\ta.jpg\t(25, 32)\nm\tb \xc3\xa4.jpg\t\n",
    ],
)
def test_what_spreadsheets_and_systems_do_to_tables(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "table").write_bytes(content)
    assert read(tmp_path / "table") == ROWS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "table: empty: is it a table"),
        (b"\n\n", "table: empty: is it a table"),
        (b"file\tgender\n", "line 1: not the header of a table: file age gender"),
        (b"\x00\x01\x02", "line 1: not the header"),
        (text().encode() + b"c.jpg\t1\n", "line 4: 2 columns, where the header has 3"),
        (text().encode() + b"c\td\te\tf\n", "line 4: 4 columns, where the header has 3"),
        (text().encode() + b"\xff\t1\tf\n", "line 4: not text in UTF-8 or UTF-16"),
        (text().encode() + b"x" * 200_000, "line 4: field larger than field limit"),
        (text().encode() + b'"c.jpg\t1\tf\n\n', "line 5: 1 columns, where"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "table").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / "table")
    assert "\n" not in str(caught.value)


def test_huge_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_TABLE_BYTES", 10)
    (tmp_path / "table").write_text(text())
    with pytest.raises(UserError, match="larger than a table"):
        read(tmp_path / "table")
