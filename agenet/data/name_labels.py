"""Labels of faces from the names of their folders or files, where there is no table."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from agenet.data.face_table import STRINGS
from agenet.data.label_texts import LabelTexts, parse_split
from agenet.data.table_columns import ColumnOptions
from agenet.data.table_faces import FaceTable, check_rows
from agenet.errors import UserError, printable
from agenet.faces.image_formats import is_read
from agenet.labels import UNKNOWN, parse_age, parse_gender

_LABELS = ("age", "gender", "subject", "split")
_FIELD = re.compile(r"\{(\w{0,40})\}")
_MAX_FILES = 20_000_000
_MAX_UNMATCHED = 0.5  # share of the files that may be named unlike the pattern


def read_folder(
    folder: Path, pattern: str = "", options: ColumnOptions | None = None
) -> tuple[FaceTable, list[str]]:
    """The faces of a folder, labelled by their folders or by a pattern of their names.

    Args:
        folder: with images, in folders of any depth.
        pattern: of the file name, such as "{age}_{gender}_{race}_{date}.jpg"; with a "/" of the
            path in the folder. Names in it other than age, gender, subject and split are kept as
            further columns. "" takes the labels from folders such as "female/25-32".
        options: further spellings of genders and unknown values.

    Returns:
        The faces, and the paths of images that do not match the pattern.

    Raises:
        UserError: there are no images or no labels, or a label is wrong; names the file.
    """
    if not folder.is_dir():
        raise UserError(f"--images {folder}: no such folder")
    names = sorted(_images(folder))
    if not names:
        raise UserError(f"--images {folder}: no images in this folder")
    options = options or ColumnOptions()
    match = _matcher(pattern) if pattern else _labels_of_folders
    rows: list[dict[str, str]] = []
    paths: list[str] = []
    unmatched: list[str] = []
    for name in names:
        labels = match(name) if _is_utf8(name) else None
        if labels is None:
            unmatched.append(printable(name, 1000))
        else:
            paths.append(name)
            rows.append(labels)
    _check_found(folder, pattern, names, rows, unmatched)
    columns = {field: [row.get(field, "") for row in rows] for field in _fields(rows)}
    return _table(folder, paths, columns, options, pattern), unmatched


def _images(folder: Path) -> Iterator[str]:
    bar = tqdm(desc=f"searching {folder.name}", unit=" files", delay=3, disable=None)
    count = 0
    for at, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        below = os.path.relpath(at, folder).replace("\\", "/")
        for name in files:
            bar.update()
            if name[0] != "." and is_read(Path(name).suffix.lower()):
                count += 1
                if count > _MAX_FILES:
                    raise UserError(f"--images {folder}: more than {_MAX_FILES:,} images")
                yield name if below == "." else f"{below}/{name}"
    bar.close()


def _is_utf8(name: str) -> bool:
    """Whether the name of a file can be stored: Python has surrogates for other bytes."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _matcher(pattern: str) -> Callable[[str], dict[str, str] | None]:
    """A function that finds the fields of a pattern in a path; None if it does not match."""
    fields = _FIELD.findall(pattern)
    twice = [name for name in fields if name and fields.count(name) > 1]
    if not set(_LABELS[:2]) & set(fields) or twice:
        reason = f"{{{twice[0]}}} is there twice" if twice else "has neither {age} nor {gender}"
        raise UserError(
            f"--pattern {printable(pattern)}: {reason}: write it like "
            "{age}_{gender}_{race}_{date}.jpg or {subject}A{age}.jpg"
        )
    parts = _FIELD.split(pattern)
    text = ""
    for index, part in enumerate(parts):
        if index % 2 == 0:
            text += re.escape(part).replace(r"\*", "[^/]*")
        elif part == "age":  # Digits, so that {subject}A{age} and {age}{gender} are clear.
            text += r"(?P<age>\d{1,3}(?:-\d{1,3}|\.\d+)?)"
        else:
            text += f"(?P<{part}>[^/]+?)" if part else "[^/]+?"
    try:
        regex = re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise UserError(f"--pattern {printable(pattern)}: {error}") from None
    whole = "/" in pattern

    def match(name: str) -> dict[str, str] | None:
        found = regex.fullmatch(name if whole else name.rpartition("/")[2])
        return found.groupdict() if found else None

    return match


def _labels_of_folders(name: str) -> dict[str, str] | None:
    labels: dict[str, str] = {}
    for folder in name.split("/")[:-1]:
        for label, parse in (("gender", parse_gender), ("age", parse_age), ("split", parse_split)):
            try:
                known = parse(folder) not in (UNKNOWN, (UNKNOWN, UNKNOWN), "")
            except ValueError:
                continue
            if known:
                labels.setdefault(label, folder)
                break
    return labels if labels.keys() & {"age", "gender"} else None


def _check_found(
    folder: Path, pattern: str, names: list[str], rows: Sequence[object], unmatched: list[str]
) -> None:
    if len(unmatched) <= _MAX_UNMATCHED * len(names):
        return
    first = ", ".join(printable(name, 200) for name in unmatched[:5])
    if pattern:
        raise UserError(
            f"--pattern {printable(pattern)} does not match {len(unmatched):,} of {len(names):,} "
            f"images in {folder}: {first}"
        )
    raise UserError(
        f"--images {folder}: {len(unmatched):,} of {len(names):,} images are in no folder that "
        f"names an age or gender, such as female/25-32: {first}: name a table with --table, or "
        "the form of the file names with --pattern={age}_{gender}.jpg"
    )


def _fields(rows: Sequence[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(field for row in rows[:100_000] for field in row))


def _table(
    folder: Path,
    paths: list[str],
    columns: dict[str, list[str]],
    options: ColumnOptions,
    pattern: str,
) -> FaceTable:
    count = len(paths)
    texts = LabelTexts(options)

    def parsed(field: str, parse: Callable[[str], object]) -> list[object]:
        values: dict[str, object] = {}
        for path, text in zip(paths, columns[field], strict=True):
            if text not in values:
                try:
                    values[text] = parse(text)
                except ValueError as error:
                    raise UserError(f"{folder / printable(path, 200)}: {error}") from None
        return [values[text] for text in columns[field]]

    age = np.full((count, 2), UNKNOWN, np.int32)
    if "age" in columns:
        age = np.array(parsed("age", texts.age), np.int32).reshape(count, 2)
    gender = np.full(count, UNKNOWN, np.int32)
    if "gender" in columns:
        gender = np.array(parsed("gender", texts.gender), np.int32)
    split = None
    if "split" in columns:
        split = np.array(parsed("split", texts.split), STRINGS)
    found = Counter({field: sum(map(bool, texts)) for field, texts in columns.items()})
    by = f"the file names {printable(pattern)}" if pattern else "the names of folders"
    table = FaceTable(
        source=str(folder),
        path=np.array(paths, STRINGS),
        row=np.arange(1, count + 1),
        age_low=age[:, 0].copy(),
        age_high=age[:, 1].copy(),
        gender=gender,
        subject=np.array(columns["subject"], STRINGS) if "subject" in columns else None,
        split=split,
        other={f: np.array(c, STRINGS) for f, c in columns.items() if f not in _LABELS},
        columns=f"by {by}: " + ", ".join(f"{field} of {n:,}" for field, n in found.items()),
        unit="file",
    )
    check_rows(table)
    return table
