"""Ages, genders and splits as people write them in tables and in names of files."""

import re

from agenet.data.table_columns import ColumnOptions
from agenet.errors import printable
from agenet.labels import GENDERS, UNKNOWN, check_age_range, parse_age, parse_gender

_SPLITS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "valset"), "validation"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}


class LabelTexts:
    """Parses labels, with the further spellings that the user names.

    Its methods raise `ValueError` for a text that is no label, and say what to do.
    """

    def __init__(self, options: ColumnOptions) -> None:
        self._genders = {name.casefold(): gender for name, gender in options.genders.items()}
        self._unknown = {*map(str.casefold, options.unknown)}

    def is_unknown(self, text: str) -> bool:
        return text.casefold() in self._unknown

    def age(self, text: str) -> tuple[int, int]:
        """The first and the last year, or twice `UNKNOWN`."""
        return (UNKNOWN, UNKNOWN) if self.is_unknown(text) else parse_age(text)

    def age_range(self, ends: tuple[str, str]) -> tuple[int, int]:
        """The same of a range whose ends have a text each."""
        (low, _), (_, high) = map(self.age, ends)
        if (low == UNKNOWN) != (high == UNKNOWN):
            raise ValueError("one end of the age range is missing")
        return (low, high) if low == UNKNOWN else check_age_range(str(low), str(high))

    def gender(self, text: str) -> int:
        """An index into `GENDERS`, or `UNKNOWN`."""
        if self.is_unknown(text):
            return UNKNOWN
        if text.casefold() in self._genders:
            return self._genders[text.casefold()]
        try:
            return parse_gender(text)
        except ValueError as error:
            shown = printable(text, 20)
            raise ValueError(
                f"{error}: say what it means with --gender {shown}={GENDERS[0]}, --gender "
                f"{shown}={GENDERS[1]} or --unknown={shown}"
            ) from None

    def subject(self, text: str) -> str:
        """The text, or "" if the subject is unknown."""
        return "" if self.is_unknown(text) else text

    def split(self, text: str) -> str:
        """See `parse_split`."""
        return "" if self.is_unknown(text) else parse_split(text)


def parse_split(text: str) -> str:
    """The split or fold of a face, see `FaceTable.split`.

    Raises:
        ValueError: it is neither train, validation or test, nor the number of a fold.

    >>> [parse_split(text) for text in ("Train", "val", "3", "fold_03", "fold 2", "")]
    ['train', 'validation', 'fold_3', 'fold_3', 'fold_2', '']
    """
    plain = text.strip().casefold()
    if plain in _SPLITS or not plain:
        return _SPLITS.get(plain, "")
    if fold := re.fullmatch(r"(?:fold)?[ _-]*(\d{1,4})(?:\.0)?", plain):
        return f"fold_{int(fold[1])}"
    raise ValueError(
        f"the split {text[:40]!r} is neither train, validation or test, nor the number of a fold"
    )
