"""Age groups, genders, and what the label strings of the data sets mean.

Standard library only: everything else may import this module.
"""

UNKNOWN = -1

# The eight groups of Adience, in order (Eidinger, Enbar & Hassner, 2014).
AGE_GROUPS = ("0-2", "4-6", "8-12", "15-20", "25-32", "38-43", "48-53", "60-100")
# The order of IMDb-Wiki's encoding (0 female, 1 male).
GENDERS = ("female", "male")
TASK_CLASSES = {"age": AGE_GROUPS, "gender": GENDERS}
AGE_LABELS = ("official", "extended")

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
# Strings outside the eight groups, assigned to the group they lie in or nearest to: the rule of
# MiVOLO's preparation (Kuprashevich & Tolstykh, 2023), with "(25, 23)", a slip for (25, 32), added.
_ADIENCE_EXTENDED_AGE = _ADIENCE_OFFICIAL_AGE | {
    **dict.fromkeys(("2", "3"), 0),
    **dict.fromkeys(("13", "(8, 23)"), 2),
    **dict.fromkeys(("22",), 3),
    **dict.fromkeys(("23", "29", "32", "34", "35", "(27, 32)", "(25, 23)"), 4),
    **dict.fromkeys(("36", "42", "45", "(38, 42)", "(38, 48)"), 5),
    **dict.fromkeys(("46", "55", "56"), 6),
    **dict.fromkeys(("57", "58"), 7),
}
_ADIENCE_AGE = {"official": _ADIENCE_OFFICIAL_AGE, "extended": _ADIENCE_EXTENDED_AGE}
_ADIENCE_GENDER = {"f": 0, "m": 1}


def adience_age_group(age: str, labels: str = "official") -> int:
    """Index into `AGE_GROUPS` of an Adience age string, or `UNKNOWN`.

    Args:
        age: the string as the fold lists have it, such as "(25, 32)", "35" or "None".
        labels: "official" (exactly the eight strings) or "extended" (strays assigned, too).
    """
    return _ADIENCE_AGE[labels].get(age, UNKNOWN)


def adience_gender(gender: str) -> int:
    """Index into `GENDERS` of an Adience gender string; "u" and "" are `UNKNOWN`."""
    return _ADIENCE_GENDER.get(gender, UNKNOWN)
