import pytest

from agenet.labels import (
    AGE_GROUPS,
    AGE_LABELS,
    GENDERS,
    TASK_CLASSES,
    UNKNOWN,
    adience_age_group,
    adience_age_range,
    adience_gender,
    fairface_age_range,
    nearest_age_group,
    nearest_age_group_of_range,
)

# Every age string of the fold lists that is not one of the eight groups.
OTHER_STRINGS = {
    "0-2": ["2", "3"],
    "8-12": ["13", "(8, 23)"],
    "15-20": ["22"],
    "25-32": ["23", "29", "32", "34", "35", "(27, 32)", "(25, 23)"],
    "38-43": ["36", "42", "45", "(38, 42)", "(38, 48)"],
    "48-53": ["46", "55", "56"],
    "60-100": ["57", "58"],
}


@pytest.mark.parametrize("labels", AGE_LABELS)
def test_the_eight_groups_map_to_themselves(labels: str) -> None:
    strings = [f"({group.replace('-', ', ')})" for group in AGE_GROUPS]
    assert [adience_age_group(string, labels) for string in strings] == list(range(8))


def test_other_strings_count_only_when_extended() -> None:
    for group, strings in OTHER_STRINGS.items():
        for string in strings:
            assert adience_age_group(string) == UNKNOWN
            assert AGE_GROUPS[adience_age_group(string, "extended")] == group


@pytest.mark.parametrize("labels", AGE_LABELS)
@pytest.mark.parametrize("age", ["None", "", "(25 32)", "(25,32)", " (25, 32)", "25-32", "7"])
def test_any_other_string_has_no_age(age: str, labels: str) -> None:
    assert adience_age_group(age, labels) == UNKNOWN


def test_genders() -> None:
    assert [GENDERS[adience_gender(gender)] for gender in "fm"] == ["female", "male"]
    assert {adience_gender(gender) for gender in ("u", "", "F", "male")} == {UNKNOWN}
    assert TASK_CLASSES == {"age": AGE_GROUPS, "gender": GENDERS}


def test_age_ranges() -> None:
    for group in AGE_GROUPS:
        low, high = map(int, group.split("-"))
        assert adience_age_range(f"({low}, {high})") == (low, high)
    assert adience_age_range("35") == (35, 35) and adience_age_range("(8, 23)") == (8, 23)
    for age in ("None", "", "(25 32)", "(32, 25)", "101", "(60, 1000)", "-3", "3.5"):
        assert adience_age_range(age) == (UNKNOWN, UNKNOWN)


def test_nearest_group() -> None:
    groups = [nearest_age_group(age) for age in range(101)]
    assert groups == sorted(groups) and set(groups) == set(range(8))
    # 3, 7, 35 and 45.5 lie in the middle between two groups and belong to the younger.
    firsts = [groups.index(group) for group in range(8)]
    assert firsts == [0, 4, 8, 14, 23, 36, 46, 57]
    assert nearest_age_group(120) == 7 and nearest_age_group(-1) == 0
    # Adience's strings of a single year agree.
    for group, ages in OTHER_STRINGS.items():
        for age in (int(age) for age in ages if age.isdigit()):
            assert AGE_GROUPS[nearest_age_group(age)] == group


def test_fairface_ranges() -> None:
    ranges = ["0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70"]
    bounds = [fairface_age_range(age) for age in ranges]
    assert bounds[0] == (0, 2) and bounds[-1] == (70, 100)
    assert [nearest_age_group_of_range(*b) for b in bounds if b] == [0, 1, 3, 4, 4, 5, 6, 7, 7]
    assert [b for b in bounds if b][1:3] == [fairface_age_range(a) for a in ("03-Sep", "Oct-19")]
    assert fairface_age_range("70+") is None


@pytest.mark.parametrize(
    "date", ["03-Sep", "9-Mar", "09.03.2024", "9/3/24", "9. Mrz", "2000-09-03"]
)
def test_fairface_ages_that_became_dates_of_march_or_september(date: str) -> None:
    assert fairface_age_range(date) == (3, 9)


@pytest.mark.parametrize("date", ["Oct-19", "19-Oct", "19. Okt", "10/19/2024", "2019-10-01"])
def test_fairface_ages_that_became_dates_of_october(date: str) -> None:
    assert fairface_age_range(date) == (10, 19)


@pytest.mark.parametrize("text", ["0-3", "13-Sep", "Mar-10", "9-x-3", "³-9", "3", "3-9-10-19", ""])
def test_fairface_has_no_other_ages(text: str) -> None:
    assert fairface_age_range(text) is None
