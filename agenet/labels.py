"""Age groups, genders, and the meaning of the label strings of each data set.

Imports the standard library only, so that every module may import it.
"""

import re
from collections.abc import Sequence

UNKNOWN = -1
MAX_AGE = 100  # years; the end of "more than 70" and of the last group

# The eight groups of Adience, in order (Eidinger, Enbar & Hassner, 2014).
AGE_GROUPS = ("0-2", "4-6", "8-12", "15-20", "25-32", "38-43", "48-53", "60-100")
# The order of IMDb-Wiki's encoding (0 female, 1 male).
GENDERS = ("female", "male")
TASK_CLASSES = {"age": AGE_GROUPS, "gender": GENDERS}
AGE_LABELS = ("official", "extended")
# The kinds of heads that predict them, see `agenet.training.losses`.
HEADS = {"age": ("groups", "distribution", "ordinal"), "gender": ("softmax", "sigmoid")}
# The seven of FairFace, in its spelling (Karkkainen & Joo, 2021).
RACES = (
    "Black",
    "East Asian",
    "Indian",
    "Latino_Hispanic",
    "Middle Eastern",
    "Southeast Asian",
    "White",
)

_ADIENCE_OFFICIAL_AGE = {
    "(0, 2)": 0,
    "(4, 6)": 1,
    "(8, 12)": 2,
    "(15, 20)": 3,
    "(25, 32)": 4,
    "(38, 43)": 5,
    "(48, 53)": 6,
    "(60, 100)": 7,
}
# Strings other than the eight groups, assigned to the group that they lie in or are nearest to: the
# rule of MiVOLO's preparation (Kuprashevich & Tolstykh, 2023), plus "(25, 23)", a typo of (25, 32).
_ADIENCE_EXTENDED_AGE = _ADIENCE_OFFICIAL_AGE | {
    **dict.fromkeys(("2", "3"), 0),
    **dict.fromkeys(("13", "(8, 23)"), 2),
    **dict.fromkeys(("22",), 3),
    **dict.fromkeys(("23", "29", "32", "34", "35", "(27, 32)", "(25, 23)"), 4),
    **dict.fromkeys(("36", "42", "45", "(38, 42)", "(38, 48)"), 5),
    **dict.fromkeys(("46", "55", "56"), 6),
    **dict.fromkeys(("57", "58"), 7),
}
_ADIENCE_TYPOS = {"(25, 23)": "(25, 32)"}
_ADIENCE_AGE = {"official": _ADIENCE_OFFICIAL_AGE, "extended": _ADIENCE_EXTENDED_AGE}
_ADIENCE_GENDER = {"f": 0, "m": 1}

_FAIRFACE_AGE = {
    "0-2": (0, 2),
    "3-9": (3, 9),
    **{f"{low}-{low + 9}": (low, low + 9) for low in range(10, 70, 10)},
    "more than 70": (70, MAX_AGE),
}
# The first letters of March, September and October in languages of spreadsheets.
_MONTHS = {
    **dict.fromkeys(("mar", "mär", "mrz", "maa"), 3),
    **dict.fromkeys(("sep", "set"), 9),
    **dict.fromkeys(("oct", "okt", "ott", "out"), 10),
}
_FAIRFACE_GENDER = {"Female": 0, "Male": 1}

_BOUNDS = [(int(low), int(high)) for low, _, high in (g.partition("-") for g in AGE_GROUPS)]


def adience_age_group(age: str, labels: str = "official") -> int:
    """Index into `AGE_GROUPS` of an Adience age string, or `UNKNOWN`.

    Args:
        age: the string in the fold lists, such as "(25, 32)", "35" or "None".
        labels: "official" (the eight strings only) or "extended" (other strings assigned, too).
    """
    return _ADIENCE_AGE[labels].get(age, UNKNOWN)


def adience_gender(gender: str) -> int:
    """Index into `GENDERS` of an Adience gender string; "u" and "" are `UNKNOWN`."""
    return _ADIENCE_GENDER.get(gender, UNKNOWN)


def adience_age_range(age: str) -> tuple[int, int]:
    """First and last year (inclusive) of an Adience age string, or `UNKNOWN` twice.

    >>> [adience_age_range(age) for age in ("(25, 32)", "35", "(25, 23)", "None")]
    [(25, 32), (35, 35), (25, 32), (-1, -1)]
    """
    years = re.fullmatch(r"\((\d{1,3}), (\d{1,3})\)|(\d{1,3})", _ADIENCE_TYPOS.get(age, age))
    if not years:
        return UNKNOWN, UNKNOWN
    low, high = int(years[1] or years[3]), int(years[2] or years[3])
    return (low, high) if low <= high <= MAX_AGE else (UNKNOWN, UNKNOWN)


def nearest_age_group(age: float) -> int:
    """Index into `AGE_GROUPS` of the group that an age lies in or is nearest to.

    If two groups are equally near, the younger one is taken.

    Args:
        age: years.

    >>> [AGE_GROUPS[nearest_age_group(age)] for age in (3, 22, 23, 35, 36, 100)]
    ['0-2', '15-20', '25-32', '25-32', '38-43', '60-100']
    """
    return nearest_range(age, _BOUNDS)


def nearest_range(age: float, ranges: Sequence[tuple[int, int]]) -> int:
    """Index of the range of years that an age lies in or is nearest to; the first of several."""
    return min(range(len(ranges)), key=lambda i: max(ranges[i][0] - age, age - ranges[i][1], 0))


def nearest_age_group_of_range(low: int, high: int) -> int:
    """Index into `AGE_GROUPS` of the group nearest to the middle of an age range.

    >>> [AGE_GROUPS[nearest_age_group_of_range(low, low + 9)] for low in range(10, 60, 10)]
    ['15-20', '25-32', '25-32', '38-43', '48-53']
    """
    return nearest_age_group((low + high) / 2)


def fairface_age_range(age: str) -> tuple[int, int] | None:
    """First and last year (inclusive) of a FairFace age string; None for any other string.

    Spreadsheets turn 3-9 and 10-19 into dates, which are understood in the forms that they write:

    >>> [fairface_age_range(age) for age in ("3-9", "03-Sep", "9-Mar", "2024-03-09 00:00:00")]
    [(3, 9), (3, 9), (3, 9), (3, 9)]
    >>> [fairface_age_range(age) for age in ("10-19", "Oct-19", "19-Oct", "1/10/2019")]
    [(10, 19), (10, 19), (10, 19), (10, 19)]
    """
    return _FAIRFACE_AGE.get(age) or _age_range_of_date(age)


def _age_range_of_date(date: str) -> tuple[int, int] | None:
    day = re.sub(r"[ T]0?0:00(:00)?$", "", date.casefold())
    part = r"([0-9]{1,4}|[^\W\d_]{3,9})"
    if not re.fullmatch(rf"{part}([-/. ]{{1,2}}{part}){{1,2}}", day):
        return None
    # Of a year the last two digits, because 10-19 may have become October 2019.
    numbers = {int(number[-2:]) for number in re.findall(r"[0-9]+", day)}
    numbers |= {_MONTHS.get(month[:3], -1) for month in re.findall(r"[^\W\d_]+", day)}
    found = [ages for ages in ((3, 9), (10, 19)) if numbers.issuperset(ages)]
    return found[0] if len(found) == 1 and -1 not in numbers else None


def fairface_gender(gender: str) -> int:
    """Index into `GENDERS` of a FairFace gender string, or `UNKNOWN`."""
    return _FAIRFACE_GENDER.get(gender, UNKNOWN)


# Labels in tables of a user's own, whose spellings are many. Compared without case.
MAX_LABELLED_AGE = 120  # years; older people are typing errors
_NOTHING = ("", "none", "nan", "null", "na", "n/a", "<na>", "unknown", "u", "?", "-")
_FEMALE = ("f", "female", "w", "woman", "women", "girl", "girls", "females", "fem")
_MALE = ("m", "male", "man", "men", "boy", "boys", "males", "masc")
_GENDER = {
    **dict.fromkeys(_NOTHING, UNKNOWN),
    **dict.fromkeys(_FEMALE, GENDERS.index("female")),
    **dict.fromkeys(_MALE, GENDERS.index("male")),
}
_YEARS = r"([+-]?\d{1,6}(?:\.\d{1,20})?)"
_YEAR_WORDS = re.compile(r"[ _]*(years?|yrs?|yo|y)([ _-]*(old|of age))?$")
_AGE_RANGE = re.compile(rf"([(\[]?)\s*{_YEARS}\s*(?:[-–—,;:_~]|\.\.|to|bis)\s*{_YEARS}\s*([)\]]?)")
_AGE_AND_OVER = re.compile(
    rf"(?:(?:more than|over|above|older than|>=?)\s*{_YEARS}|"
    rf"{_YEARS}\s*(?:\+|(?:and|or)[ _](?:more|over|older|above|up)))"
)
_AGE_UNDER = re.compile(rf"(?:(under|below|younger than|less than|<)|<=|up to)\s*{_YEARS}")


def parse_gender(text: str) -> int:
    """Index into `GENDERS` of a common English spelling; `UNKNOWN` of an empty or unknown value.

    Raises:
        ValueError: another spelling, such as a number, of which data sets use both orders.

    >>> [parse_gender(text) for text in ("F", "woman", " Male", "", "unknown")]
    [0, 0, 1, -1, -1]
    """
    gender = _GENDER.get(text.strip().casefold())
    if gender is None:
        raise ValueError(f"the gender {text[:40]!r} is not known")
    return gender


def parse_age(text: str) -> tuple[int, int]:
    """First and last year (inclusive) of an age or age range; `UNKNOWN` twice if it is not known.

    Fractions of a year are cut off. Ranges open at one end are written "[20, 30)", as pandas does.

    Raises:
        ValueError: it is neither, outside of 0 to `MAX_LABELLED_AGE`, or upside down.

    >>> [parse_age(text) for text in ("31", "31.9", "(25, 32)", "25-32", "[20, 30)", "(20, 30]")]
    [(31, 31), (31, 31), (25, 32), (25, 32), (20, 29), (21, 30)]
    >>> [parse_age(text) for text in ("60+", "more than 70", "under 5", "3 years", "Oct-19", "nan")]
    [(60, 100), (70, 100), (0, 4), (3, 3), (10, 19), (-1, -1)]
    """
    plain = _YEAR_WORDS.sub("", text.strip().casefold())
    if plain in _NOTHING:
        return UNKNOWN, UNKNOWN
    if re.fullmatch(_YEARS, plain):
        return check_age_range(plain, plain)
    if range_ := _AGE_RANGE.fullmatch(plain):
        opening, low, high, closing = range_.groups()
        mixed = opening + closing in ("(]", "[)")
        return check_age_range(low, high, mixed and opening == "(", mixed and closing == ")")
    if over := _AGE_AND_OVER.fullmatch(plain):
        low = over[1] or over[2]
        return check_age_range(low, str(max(MAX_AGE, int(float(low)))))
    if under := _AGE_UNDER.fullmatch(plain):
        return check_age_range("0", under[2], False, bool(under[1]))
    if date := _age_range_of_date(plain):
        return date
    raise ValueError(f"the age {text[:40]!r} is neither a number nor a range such as 25-32")


def check_age_range(
    low: str, high: str, above_low: bool = False, below_high: bool = False
) -> tuple[int, int]:
    """First and last year (inclusive) between two ages, without an end that is not included.

    Raises:
        ValueError: one is no number or outside of 0 to `MAX_LABELLED_AGE`, or they are upside down.
    """
    ends = []
    for text in (low, high):
        years = float(text)
        if not 0 <= years <= MAX_LABELLED_AGE:
            side = "below 0" if years < 0 else f"above {MAX_LABELLED_AGE}"
            raise ValueError(f"the age {text} is {side}")
        ends.append(int(years))
    first, last = ends[0] + above_low, ends[1] - below_high
    if first > last:
        raise ValueError(f"the age range {low} to {high} is upside down")
    return first, last
