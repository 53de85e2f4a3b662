"""Age groups, and what the probability of each year says about a face in terms of them."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from agenet.errors import UserError, printable
from agenet.labels import MAX_AGE, nearest_range

INTERVAL = 0.8  # probability that `Prediction.age_interval` holds


class AgeGroups(NamedTuple):
    """Age groups, in order.

    Attributes:
        names: such as "25-32".
        ranges: first and last year of each, inclusive.
        of_year: index of the group that each year counts towards, the nearest one: int [101].
    """

    names: tuple[str, ...]
    ranges: tuple[tuple[int, int], ...]
    of_year: np.ndarray


def split_groups(text: str) -> tuple[str, ...]:
    """The names of groups in "0-17, 18-64,65-100"."""
    return tuple(group.strip() for group in text.split(",") if group.strip())


@lru_cache(maxsize=16)
def parse_groups(names: tuple[str, ...]) -> AgeGroups:
    """Parses age groups such as ("0-17", "18-64", "65-100").

    Raises:
        UserError: one is not a range of years up to `MAX_AGE`, they overlap, or do not increase.
    """
    ranges: list[tuple[int, int]] = []
    for name in names:
        first, dash, last = name.partition("-")
        if not (dash and first.isdecimal() and last.isdecimal()):
            raise UserError(f'age group "{printable(name, 30)}" must be like 18-64, in whole years')
        ranges.append((int(first), int(last)))
        after = ranges[-2][1] if len(ranges) > 1 else -1
        if not after < ranges[-1][0] <= ranges[-1][1] <= MAX_AGE:
            raise UserError(
                f'age group "{name}": groups must not overlap, must increase, and end by {MAX_AGE}'
            )
    of_year = np.array([nearest_range(year, ranges) for year in range(MAX_AGE + 1)])
    return AgeGroups(names, tuple(ranges), of_year)


def describe_years(years: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """The fields of a `Prediction` that concern age, which never contradict each other.

    The group is the one with the largest probability. The age is the median year, or the year of
    that group that is nearest to it: of all years of the group it has the smallest expected error.
    The interval is the shortest one that holds `INTERVAL` of the probability and contains the age.

    Args:
        years: probabilities of 0 to `MAX_AGE` years, [101]; they need not sum to 1.
        groups: names of age groups, see `parse_groups`.
    """
    parsed = parse_groups(tuple(groups))
    years = np.asarray(years, np.float64)
    years = years / years.sum()
    probabilities = np.bincount(parsed.of_year, years, len(parsed.names))
    best = int(probabilities.argmax())
    first, last = parsed.ranges[best]
    median = int(years.cumsum().searchsorted(0.5))
    age = min(max(median, first), last)
    return {
        "age": float(age),
        "age_group": parsed.names[best],
        "age_probabilities": dict(zip(parsed.names, probabilities.tolist(), strict=True)),
        "age_interval": shortest_interval(years, INTERVAL, age),
        "age_distribution": tuple(years.tolist()),
    }


def shortest_interval(years: np.ndarray, probability: float, age: int) -> tuple[int, int]:
    """First and last year of the shortest interval that contains `age` and holds `probability`.

    >>> shortest_interval(np.array([0.1, 0.2, 0.5, 0.2]), 0.8, 2)
    (1, 3)

    Args:
        years: probabilities of 0, 1, 2 ... years; they sum to 1.
        probability: less than 1.
        age: in years.
    """
    below = np.zeros(len(years) + 1)  # the probability of less than each year
    np.cumsum(years, out=below[1:])
    # The last year for each first one. Rounding must not cost a year.
    last = below[1:].searchsorted(below[: age + 1] + (probability - 1e-9))
    last = np.maximum(last[: last.searchsorted(len(years))], age)
    count = len(last)
    # Of several that are equally short, the one that holds most.
    cost = last - np.arange(count) - (below[last + 1] - below[:count])
    first = int(cost.argmin())
    return first, int(last[first])
