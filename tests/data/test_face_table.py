import json
import math
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from agenet.data.face_table import FaceTable, read_face_table
from agenet.data.table_columns import ColumnOptions, find_columns
from agenet.data.table_files import describe_missing, find_missing
from agenet.data.table_rows import CHUNK_ROWS
from agenet.errors import UserError


def write(folder: Path, text: str | bytes, name: str = "faces.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(folder: Path, text: str | bytes, **options: object) -> FaceTable:
    return read_face_table(write(folder, text), ColumnOptions(**options))  # type: ignore[arg-type]


def test_columns_are_guessed_and_values_parsed(tmp_path: Path) -> None:
    table = read(
        tmp_path,
        "Image Path;Age;Sex;person_id;fold;x;y;w;h;race\n"
        '.\\a\\1.jpg;31;F;p1;0;1;2;3;4;"White, other"\n'
        "\n"
        "2.jpg;(25, 32); male ;p2;fold_1;;;;;Black\n"
        "3.jpg;nan;;;;0.5;0;9;9;Black\n",
    )
    assert table.path.tolist() == ["a/1.jpg", "2.jpg", "3.jpg"]
    assert table.row.tolist() == [2, 4, 5]
    assert table.age_low.tolist() == [31, 25, -1] and table.age_high.tolist() == [31, 32, -1]
    assert table.gender.tolist() == [0, 1, -1]
    assert table.subject is not None and table.subject.tolist() == ["p1", "p2", ""]
    assert table.split is not None and table.split.tolist() == ["fold_0", "fold_1", ""]
    assert table.box is not None and table.box[[0, 2]].tolist() == [[1, 2, 4, 6], [0.5, 0, 9.5, 9]]
    assert math.isnan(table.box[1, 0])
    assert table.other["race"].tolist() == ["White, other", "Black", "Black"]
    assert table.columns == (
        "path = Image Path, age = Age, gender = Sex, subject = person_id, split = fold, "
        "box (size) = x y w h; not used: race"
    )
    some = table.select(table.gender >= 0)
    assert len(some) == 2 and some.other["race"].tolist() == ["White, other", "Black"]


def test_formats_agree(tmp_path: Path) -> None:
    rows = [
        {"file": f"{i}.jpg", "age": i / 2, "gender": "fm"[i % 2], "box": [i, 1.5, i + 2, 9]}
        for i in range(40)
    ]
    texts = [f"{r['file']}\t{r['age']}\t{r['gender']}\t{r['box']}" for r in rows]
    tsv = "\n".join(["file\tage\tgender\tbox", *texts])
    expected = read_face_table(write(tmp_path, tsv, "a.tsv"))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    lines = "\r\n".join(map(json.dumps, rows))
    for path in (
        write(tmp_path, tsv.encode("utf-16"), "b.tsv"),
        write(tmp_path, b"\xef\xbb\xbf" + tsv.encode(), "c.txt"),
        write(tmp_path, tsv.replace("\n", "\r"), "mac.tsv"),
        write(tmp_path, lines, "a.jsonl"),
        tmp_path / "a.parquet",
    ):
        table = read_face_table(path)
        for name in ("path", "age_low", "age_high", "gender", "box"):
            assert getattr(table, name).tolist() == getattr(expected, name).tolist(), path.name
    assert read_face_table(tmp_path / "a.parquet").where(0).endswith("a.parquet, row 1")


def test_columns_that_the_user_names(tmp_path: Path) -> None:
    text = "name,img,a,min,max,g,l,t,r,b\nx,1.jpg,5,3,9,0,0,0,4,4\ny,2.jpg,6,-1,,1,,,,\n"
    names = {"age_low": "min", "age_high": "max", "gender": "g", "box": "l,t,r,b", "subject": ""}
    table = read(tmp_path, text, names=names, genders={"0": 1, "1": 0}, unknown=["-1"])
    assert table.path.tolist() == ["1.jpg", "2.jpg"] and table.gender.tolist() == [1, 0]
    assert table.age_low.tolist() == [3, -1] and table.age_high.tolist() == [9, -1]
    assert table.box is not None and table.box[0].tolist() == [0, 0, 4, 4]
    assert read_face_table(tmp_path / "faces.csv", ColumnOptions(), ()).other == {}
    kept = read_face_table(tmp_path / "faces.csv", ColumnOptions(), ["img", "g"]).other
    assert kept["img"].tolist() == ["1.jpg", "2.jpg"] and kept["g"].tolist() == ["0", "1"]


def test_a_range_in_two_columns_does_not_hide_an_age() -> None:
    columns = find_columns(["file", "age", "age_min", "age_max"], ColumnOptions(), "a.csv")
    assert columns.of == {"path": "file", "age": "age"}
    assert columns.others == ("age_min", "age_max")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,age\na.jpg,-3\n", r"csv, line 2: the age -3 is below 0$"),
        ("file,age\na.jpg,5\nb.jpg,130\n", r"line 3: the age 130 is above 120"),
        ("file,age\na.jpg,32-25\n", r"line 2: the age range 32 to 25 is upside down"),
        ("file,age\na.jpg,old\n", r"line 2: the age 'old' is neither a number nor a range"),
        ("file,age_low,age_high\na.jpg,9,3\n", r"line 2: the age range 9 to 3 is upside down"),
        ("file,age_low,age_high\na.jpg,9,\n", r"line 2: one end of the age range is missing"),
        ("file,sex\na.jpg,f\nb.jpg,1\n", r"line 3: the gender '1' is not known: .*--gender 1=fem"),
        ("file,sex\na.jpg,f\na.jpg,m\n", r"line 3: a.jpg was listed before, in line 2: leave one"),
        ("file,sex\na.jpg,f\n./a.jpg,m\n", r"line 3: a.jpg was listed before"),
        ("file,split\na.jpg,left\n", r"line 2: the split 'left' is neither train, validation or"),
        (
            "file,subject,split\na.jpg,p,train\nb.jpg,p,test\n",
            r"line 3: subject p is in test, but in train in line 2: .*--column split=",
        ),
        ("file,x1,y1,x2,y2\na.jpg,9,9,5,5\n", r"line 2: the box .* 9, 9, 5, 5 is empty: .*size$"),
        ("file,bbox\na.jpg,1 2 3\n", r"line 2: the box '1 2 3' is not four numbers"),
        ("file,age\na.jpg,5,6\n", r"line 2: 3 fields, where the header has 2"),
        ("file,age\n,5\n", r"line 2: no path of an image"),
        ("file,age\n", r"has a header, but no rows"),
        ("a,b\n1,2\n", r"no column is named like the path of an image: .*--column path=NAME;"),
        ("file,file\na,b\n", r"two columns 'file'"),
        ("", r"empty: name a table"),
        (b"file,age\na.jpg,5\nm\xfcller.jpg,6\n", r"line 3: not text in UTF-8 or UTF-16: save"),
        (b"PK\x03\x04", r"is a spreadsheet or an archive: save the table as CSV"),
        ("[{}]", r"one JSON array: write JSON lines"),
        ('{"file": "a.jpg"}\n{"file": 1\n', r"line 2: not JSON"),
        ('{"file": "a"}\n[1]\n', r"line 2: not a JSON object"),
        ("file\n" + "x" * 300_000, r"lines are too long"),
        ('file,note\na.jpg,"' + "x" * 20_000 + '"\n', r"line 2: 20,000 characters in the column n"),
        (b"PAR1 and nothing more", r"damaged, or not Parquet"),
    ],
)
def test_mistakes_name_the_row(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column 'Agee' for age: did you mean Age"):
        read(tmp_path, "file,Age\na.jpg,3\n", names={"age": "Agee"})
    with pytest.raises(UserError, match="--column sex: not a field"):
        read(tmp_path, "file,Age\na.jpg,3\n", names={"sex": "Age"})
    with pytest.raises(UserError, match="there is no column 'race'"):
        read_face_table(tmp_path / "faces.csv", keep=["race"])
    with pytest.raises(UserError, match="no such file"):
        read_face_table(tmp_path / "none.csv")


def test_several_faces_of_one_image(tmp_path: Path) -> None:
    header = "file,x1,y1,x2,y2\n"
    assert len(read(tmp_path, f"{header}a.jpg,0,0,5,5\na.jpg,9,0,12,5\n")) == 2
    with pytest.raises(UserError, match=r"line 4: a.jpg was listed before, in line 2"):
        read(tmp_path, f"{header}a.jpg,0,0,5,5\na.jpg,9,0,12,5\na.jpg,0,0,5,5\n")


def test_rows_are_counted_across_chunks_and_line_ends_in_fields(tmp_path: Path) -> None:
    count = 2 * CHUNK_ROWS + 10
    rows = [f'{i}.jpg,{i % 90},"two\nlines"' for i in range(count)]
    rows[count - 5] = f"{count - 5}.jpg,200,one"
    with pytest.raises(UserError, match=rf"line {2 * (count - 5) + 2}: the age 200 is above 120"):
        read(tmp_path, "\n".join(["file,age,note", *rows]))


def test_missing_files_and_what_would_fix_it(tmp_path: Path) -> None:
    folder = tmp_path / "faces" / "aligned"
    folder.mkdir(parents=True)
    for number in range(8):
        (folder / f"{number}.jpg").touch()
    names = [f"{number}.jpg" for number in range(8)]
    assert not len(find_missing(names, folder))
    for paths, images, fix in (
        (names, tmp_path, f"they are in {folder}/?: use --images={folder}$"),
        ([f"aligned/{name}" for name in names], folder, f"use --images={folder.parent}$"),
        ([f"/data/x/{name}" for name in names], folder, "add --strip-prefix=/data/x/$"),
        ([f"{number}.png" for number in range(8)], folder, "same names that end with .jpg$"),
        ([f"{number}.gif" for number in "abcdefgh"], folder, "the folder holds 0.jpg, 1.jpg, 2"),
    ):
        missing = find_missing(paths, images)
        message = describe_missing("faces.csv", paths, missing, images)
        assert message.startswith(f"faces.csv: 8 of 8 images are not in {images}: {paths[0]}, ")
        assert "and 3 more" in message
        with pytest.raises(UserError, match=fix):
            raise UserError(message)
    assert find_missing(["x" * 5000 + ".jpg", "0.jpg", "a\0.jpg"], folder).tolist() == [0, 2]
    with pytest.raises(UserError, match="leads out of its folder"):
        find_missing(["../../a.jpg"], folder)
    with pytest.raises(UserError, match="no such folder"):
        find_missing(names, tmp_path / "none")
