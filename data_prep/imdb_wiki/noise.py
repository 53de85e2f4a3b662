"""Computes ages from dates, and drops rows with doubtful labels or faces."""

from dataclasses import dataclass

import numpy as np

from .matlab import Metadata

_FIRST_DATENUM = 367  # 1 January of the year 1; smaller values are in MATLAB's year 0
_LAST_DATENUM = 3652425  # 31 December 9999
_DATENUM_OF_1970 = 719529


def ages(dob: np.ndarray, photo_taken: np.ndarray) -> np.ndarray:
    """Returns the age in whole years when a photograph was taken, float64 [N].

    The day is not known; photographs are taken to be from the middle of the year, so persons born
    in July or later have not had their birthday yet. NaN where the date of birth is invalid.

    Args:
        dob: [N], MATLAB's serial date numbers.
        photo_taken: [N], years.
    """
    valid = (dob >= _FIRST_DATENUM) & (dob < _LAST_DATENUM + 1) & np.isfinite(photo_taken)
    days = np.where(valid, dob, _DATENUM_OF_1970).astype(np.int64) - _DATENUM_OF_1970
    months = days.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
    year, month = 1970 + months // 12, 1 + months % 12
    return np.where(valid, photo_taken - year - (month >= 7), np.nan)


@dataclass(frozen=True)
class NoiseFilter:
    """Rules that rows must pass; the defaults are those commonly used in the literature.

    Attributes:
        valid_dates: whether rows without a valid age are dropped; else their age is unknown.
        min_age, max_age: range of ages in years, inclusive.
        known_gender: whether rows without a gender are dropped.
        found_face: whether rows without a detected face, which are no face crops, are dropped.
        min_face_score: minimum score of the face detector.
        single_face: whether rows with a second face, which may be the labelled one, are dropped.
    """

    valid_dates: bool = True
    min_age: int = 0
    max_age: int = 100
    known_gender: bool = True
    found_face: bool = True
    min_face_score: float = 1.0
    single_face: bool = True

    def apply(self, rows: Metadata) -> tuple[np.ndarray, dict[str, int]]:
        """Returns which of the N rows are kept, bool [N], and the number dropped by each rule.

        A row that violates several rules counts for the first of them.
        """
        age = ages(rows.dob, rows.photo_taken)
        score = rows.face_score
        rules = {
            "no valid date": self.valid_dates & ~np.isfinite(age),
            f"age below {self.min_age}": age < self.min_age,
            f"age above {self.max_age}": age > self.max_age,
            "gender unknown": self.known_gender & ~np.isin(rows.gender, (0, 1)),
            "no face found": self.found_face & ~np.isfinite(score),
            f"face score below {self.min_face_score:g}": ~(score >= self.min_face_score),
            "a second face": self.single_face & ~np.isnan(rows.second_face_score),
        }
        kept = np.ones(len(age), bool)
        dropped = {}
        for rule, breaks in rules.items():
            dropped[rule] = int(np.sum(kept & breaks))
            kept &= ~breaks
        return kept, dropped
