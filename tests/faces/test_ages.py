import numpy as np
import pytest

from agenet.faces.ages import INTERVAL, describe_years, parse_groups, shortest_interval
from agenet.labels import AGE_GROUPS

YEARS = np.arange(101)
GROUPS = [
    AGE_GROUPS,
    ("0-17", "18-64", "65-100"),
    ("0-100",),
    ("18-25", "60-70"),
    ("0-0", "100-100"),
]


def bell(mean: float, width: float) -> np.ndarray:
    shape = np.exp(-0.5 * ((YEARS - mean) / width) ** 2)
    return shape / shape.sum()


def distributions() -> list[np.ndarray]:
    """Narrow and wide ones, between groups and at the ends, with one and with two maxima."""
    rng = np.random.default_rng(0)
    some = [bell(mean, width) for mean in range(0, 101, 3) for width in (0.1, 2.0, 8.0, 30.0)]
    some += [0.55 * bell(a, 3) + 0.45 * bell(b, 3) for a, b in rng.uniform(0, 100, (100, 2))]
    some += list(rng.dirichlet(np.full(101, 0.05), 200))
    return [*some, np.full(101, 1 / 101), np.eye(101)[0], np.eye(101)[100]]


@pytest.mark.parametrize("groups", GROUPS)
def test_age_group_and_interval_never_contradict_each_other(groups: tuple[str, ...]) -> None:
    parsed = parse_groups(groups)
    for years in distributions():
        found = describe_years(3 * years, groups)  # need not sum to 1
        probabilities = list(found["age_probabilities"].values())
        expected = [years[parsed.of_year == i].sum() for i in range(len(groups))]
        np.testing.assert_allclose(probabilities, expected, atol=1e-9)
        best = groups.index(found["age_group"])
        assert probabilities[best] == max(probabilities)
        first, last = parsed.ranges[best]
        assert first <= found["age"] <= last and found["age"] % 1 == 0
        low, high = found["age_interval"]
        assert 0 <= low <= found["age"] <= high <= 100
        assert years[low : high + 1].sum() >= INTERVAL - 1e-6
        np.testing.assert_allclose(found["age_distribution"], years, atol=1e-9)


def test_the_age_is_the_median_year_where_that_is_in_the_group() -> None:
    assert describe_years(bell(29.3, 3), AGE_GROUPS)["age"] == 29
    # Between two groups it is the nearest year of the more probable one.
    assert describe_years(bell(34.9, 3), AGE_GROUPS)["age"] == 32
    assert describe_years(bell(36.1, 3), AGE_GROUPS)["age"] == 38


def test_no_year_of_the_group_has_a_smaller_expected_error() -> None:
    parsed = parse_groups(AGE_GROUPS)
    for years in distributions():
        found = describe_years(years, AGE_GROUPS)
        first, last = parsed.ranges[AGE_GROUPS.index(found["age_group"])]
        errors = [years @ np.abs(YEARS - year) for year in range(first, last + 1)]
        assert errors[int(found["age"]) - first] <= min(errors) + 1e-9


def test_shortest_interval() -> None:
    for years in distributions()[::7]:
        for age in (0, 44, 100):
            brute = [
                (high - low, -years[low : high + 1].sum(), low, high)
                for low in range(age + 1)
                for high in range(age, 101)
                if years[low : high + 1].sum() >= 0.8 - 1e-9
            ]
            low, high = shortest_interval(years, 0.8, age)
            assert low <= age <= high and high - low == min(brute)[0]
            assert years[low : high + 1].sum() >= -min(brute)[1] - 1e-9
    assert shortest_interval(np.eye(101)[7], 0.8, 7) == (7, 7)
    assert shortest_interval(np.full(101, 1 / 101), 0.8, 100) == (20, 100)
