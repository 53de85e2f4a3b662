"""Ages from dates, and the filter that drops rows whose labels or faces are in doubt."""

from dataclasses import dataclass

import numpy as np

from .matlab import Metadata

_FIRST_DATENUM = 367  # 1 January of the year 1; below it, MATLAB counts a year 0
_LAST_DATENUM = 3652425  # 31 December 9999
_DATENUM_OF_1970 = 719529


def ages(dob: np.ndarray, photo_taken: np.ndarray) -> np.ndarray:
    """Whole years at the middle of the year in which a picture was taken: float64 [N].

    Nobody recorded the day, so that whoever was born in July or later is taken to have had no
    birthday yet. NaN where the date of birth is none.

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
    """Which rows are kept; the defaults are the rules that the field usually applies.

    Attributes:
        valid_dates: whether the dates must give an age; a row that may lack one has it unknown.
        min_age, max_age: years, both included.
        known_gender: whether the gender must be known.
        found_face: whether the detector must have found a face; else the picture is no face crop.
        min_face_score: the least score of the detector.
        single_face: whether a second face on the picture, which may be the one meant, drops it.
    """

    valid_dates: bool = True
    min_age: int = 0
    max_age: int = 100
    known_gender: bool = True
    found_face: bool = True
    min_face_score: float = 1.0
    single_face: bool = True

    def apply(self, rows: Metadata) -> tuple[np.ndarray, dict[str, int]]:
        """Which of the N rows are kept, bool [N], and how many each rule dropped, in order.

        A row that breaks several rules is counted for the first of them.
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
