"""Finds out which columns of a table of faces hold what: as the user says, or by their names."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from agenet.errors import UserError, did_you_mean, printable

# The fields of a face, and names of columns that hold them: lower case, letters and digits only,
# the likelier ones first.
_NAMES: dict[str, tuple[str, ...]] = {
    "path": (
        *("path", "filepath", "imagepath", "imgpath", "fullpath", "relativepath", "filefull"),
        *("file", "filename", "image", "imagefile", "imagename", "img", "imgname"),
        *("photo", "picture", "originalimage"),
    ),
    "age": (
        *("age", "realage", "trueage", "ageyears", "ageinyears", "years", "chronologicalage"),
        *("agerange", "agegroup", "agebin", "ageclass", "agebucket", "agelabel", "apparentage"),
    ),
    "age_low": ("agelow", "agemin", "minage", "agefrom", "lowage", "agelower", "lowerage"),
    "age_high": ("agehigh", "agemax", "maxage", "ageto", "highage", "ageupper", "upperage"),
    "gender": ("gender", "sex", "genderlabel"),
    "subject": (
        *("subject", "subjectid", "person", "personid", "identity", "identityid", "individual"),
        *("individualid", "celebid", "celebrityid"),
    ),
    "split": ("split", "fold", "foldid", "subset", "partition", "usage"),
    "box": ("box", "bbox", "facebox", "facebbox", "boundingbox", "facelocation"),
}
FIELDS = tuple(_NAMES)

BoxFormat = Literal["corners", "size"]
# Names of four columns that hold a box together, after a prefix such as "bbox_" or "face_".
_SIDES: tuple[tuple[tuple[str, ...], BoxFormat], ...] = (
    (("x1", "y1", "x2", "y2"), "corners"),
    (("left", "top", "right", "bottom"), "corners"),
    (("xmin", "ymin", "xmax", "ymax"), "corners"),
    (("x0", "y0", "x1", "y1"), "corners"),
    (("x", "y", "w", "h"), "size"),
    (("x", "y", "width", "height"), "size"),
    (("left", "top", "width", "height"), "size"),
    (("x", "y", "dx", "dy"), "size"),
)
_BOX_PREFIXES = ("", "box", "bbox", "face", "facebox", "facebbox")


@dataclass(frozen=True)
class ColumnOptions:
    """What the user says about the columns of a table.

    Attributes:
        names: for each of `FIELDS` the name of its column; "" says that there is none. The box may
            be four names, with commas. Fields that are not in it are guessed.
        box_format: "corners" (left, top, right, bottom) or "size" (left, top, width, height), in
            pixels; "" guesses it from the names.
        genders: further spellings of genders, to an index into `agenet.labels.GENDERS`.
        unknown: further spellings of unknown values.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    box_format: Literal["", "corners", "size"] = ""
    genders: Mapping[str, int] = field(default_factory=dict)
    unknown: Sequence[str] = ()


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what.

    Attributes:
        of: the column of each field that has one; that of the box is in `box`.
        box: one column with four numbers, or four; none without boxes.
        box_format: see `ColumnOptions`.
        others: the other columns.
    """

    of: dict[str, str]
    box: tuple[str, ...]
    box_format: BoxFormat
    others: tuple[str, ...]

    def describe(self) -> str:
        """One line for the user.

        >>> find_columns(["file", "Age", "race"], ColumnOptions(), "a.csv").describe()
        'path = file, age = Age, gender: none, subject: none, split: none; not used: race'
        """
        shown = [f"{name} = {printable(column)}" for name, column in self.of.items()]
        if self.box:
            shown.append(f"box ({self.box_format}) = {printable(' '.join(self.box))}")
        has_age = any(name.startswith("age") for name in self.of)
        lacking = [name for name in ("gender", "subject", "split") if name not in self.of]
        shown += [f"{name}: none" for name in ([] if has_age else ["age"]) + lacking]
        others = ", ".join(printable(name) for name in self.others[:20])
        return ", ".join(shown) + (f"; not used: {others}" if others else "")


def find_columns(header: Sequence[str], options: ColumnOptions, where: str) -> Columns:
    """Finds the columns of a table.

    Args:
        header: the names of its columns.
        options: what the user says about them.
        where: the table, for messages.

    Raises:
        UserError: a column that the user names is missing, or none holds the paths.
    """
    for name in options.names:
        if name not in FIELDS:
            raise UserError(
                f"--column {printable(name)}: not a field{did_you_mean(name, FIELDS)} There are "
                f"{', '.join(FIELDS)}"
            )
    plain: dict[str, str] = {}
    for name in header:
        plain.setdefault(_plain(name), name)
    of: dict[str, str] = {}
    for field_ in FIELDS:
        if field_ == "box":
            continue
        if field_ in options.names:
            if named := options.names[field_]:
                of[field_] = _named(named, header, field_, where)
        elif guessed := next((plain[n] for n in _NAMES[field_] if n in plain), None):
            of[field_] = guessed
    _keep_one_kind_of_age(of, options)
    if "path" not in of:
        raise UserError(
            f"{where}: no column is named like the path of an image: name it with "
            f"--column path=NAME; there are {', '.join(printable(n) for n in header[:20])}"
        )
    box, box_format = _find_box(header, plain, options, where)
    used = {*of.values(), *box}
    others = tuple(name for name in header if name not in used)
    return Columns(of, box, box_format, others)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _named(name: str, header: Sequence[str], field_: str, where: str) -> str:
    if name not in header:
        raise UserError(
            f"{where}: no column {printable(name)!r} for {field_}{did_you_mean(name, header)} "
            f"There are {', '.join(printable(n) for n in header[:20])}"
        )
    return name


def _keep_one_kind_of_age(of: dict[str, str], options: ColumnOptions) -> None:
    """Of an age and a range in two columns, the one that the user names, or the age."""
    both = {"age_low", "age_high"}
    if not both <= of.keys() or ("age" in of and not both & options.names.keys()):
        for name in both - options.names.keys():
            of.pop(name, None)
    if both <= of.keys():
        of.pop("age", None)


def _find_box(
    header: Sequence[str], plain: Mapping[str, str], options: ColumnOptions, where: str
) -> tuple[tuple[str, ...], BoxFormat]:
    if "box" in options.names:
        if not options.names["box"]:
            return (), "corners"
        names = [n.strip() for n in options.names["box"].split(",")]
        if len(names) not in (1, 4):
            raise UserError("--column box: name one column with four numbers, or four columns")
        box = tuple(_named(name, header, "box", where) for name in names)
        return box, options.box_format or _format_of(box)
    for prefix in _BOX_PREFIXES:
        for sides, format_ in _SIDES:
            if all(prefix + side in plain for side in sides):
                return tuple(plain[prefix + s] for s in sides), options.box_format or format_
    one = next((plain[n] for n in _NAMES["box"] if n in plain), None)
    return ((one,) if one else ()), options.box_format or "corners"


def _format_of(box: Sequence[str]) -> BoxFormat:
    last = _plain(box[-1])
    return "size" if last.endswith(("h", "height", "dy")) else "corners"
