import pytest

from agenet.labels import (
    AGE_GROUPS,
    AGE_LABELS,
    GENDERS,
    TASK_CLASSES,
    UNKNOWN,
    adience_age_group,
    adience_gender,
)

# Every age string of the fold lists that is not one of the eight groups.
STRAYS = {
    "0-2": ["2", "3"],
    "8-12": ["13", "(8, 23)"],
    "15-20": ["22"],
    "25-32": ["23", "29", "32", "34", "35", "(27, 32)", "(25, 23)"],
    "38-43": ["36", "42", "45", "(38, 42)", "(38, 48)"],
    "48-53": ["46", "55", "56"],
    "60-100": ["57", "58"],
}


@pytest.mark.parametrize("labels", AGE_LABELS)
def test_the_eight_groups_are_themselves(labels: str) -> None:
    strings = [f"({group.replace('-', ', ')})" for group in AGE_GROUPS]
    assert [adience_age_group(string, labels) for string in strings] == list(range(8))


def test_strays_count_only_when_extended() -> None:
    for group, strings in STRAYS.items():
        for string in strings:
            assert adience_age_group(string) == UNKNOWN
            assert AGE_GROUPS[adience_age_group(string, "extended")] == group


@pytest.mark.parametrize("labels", AGE_LABELS)
@pytest.mark.parametrize("age", ["None", "", "(25 32)", "(25,32)", " (25, 32)", "25-32", "7"])
def test_anything_else_has_no_age(age: str, labels: str) -> None:
    assert adience_age_group(age, labels) == UNKNOWN


def test_genders() -> None:
    assert [GENDERS[adience_gender(gender)] for gender in "fm"] == ["female", "male"]
    assert {adience_gender(gender) for gender in ("u", "", "F", "male")} == {UNKNOWN}
    assert TASK_CLASSES == {"age": AGE_GROUPS, "gender": GENDERS}
