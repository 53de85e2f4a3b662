"""Measures a predictor on a prepared data set: whole, by subgroup, and on worse pictures.

python scripts/measure_predictor.py [--data_set=fairface/partial] [--fold=0] [--model=default]

Every image of one fold passes through `Predictor.predict` (fold 0 is the test set of data sets that
have one). An age's error is its distance from the labelled range of years, 0 inside it; where the
exact age is known it is the absolute error.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np

from agenet.errors import ArgumentParser, UserError, one_line_errors
from agenet.inference.predictor import Predictor
from agenet.labels import GENDERS, RACES, UNKNOWN
from agenet.runs.series import table

BATCH = 256
Figures = dict[str, np.ndarray]


def _zoom(image: np.ndarray, factor: float) -> np.ndarray:
    """About the middle, with the edge repeated where there is nothing more."""
    size = image.shape[0]
    middle = (size - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), 0, factor)
    return cv2.warpAffine(image, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)


def _turn(image: np.ndarray) -> np.ndarray:
    middle = (image.shape[0] - 1) / 2
    return cv2.warpAffine(
        image, cv2.getRotationMatrix2D((middle, middle), 15, 1), image.shape[1::-1]
    )


def _small(image: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


CONDITIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as they are": lambda image: image,
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "cut a third closer": lambda image: _zoom(image, 1.33),
    "a third looser": lambda image: _zoom(image, 0.75),
    "turned by 15 degrees": _turn,
    "in grey": _grey,
    "48 pixels": lambda image: _small(image, 48),
    "24 pixels": lambda image: _small(image, 24),
}


def main() -> None:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_set", default="fairface/partial", help="DATA_SET/CONFIG")
    parser.add_argument("--data_dir", default="", help="folder of the prepared data sets")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--labels", default="extended", help="age strings that count, of Adience")
    parser.add_argument("--model", default="default", help="weights: a name, a file or a run")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--count", type=int, default=0, help="of faces, drawn at random; 0: all")
    args = parser.parse_args()
    from agenet.data.records import open_records
    from agenet.inference.engines import create_engine
    from agenet.runs.lineage import is_seen
    from agenet.weights.bundled import find_weights

    records = open_records(args.data_set, args.data_dir, args.labels)
    rows = np.flatnonzero(records.fold == args.fold)
    if not len(rows):
        raise UserError(f"{records.name} has no fold {args.fold}: give another --fold")
    if args.count:
        rows = np.sort(np.random.default_rng(0).permutation(rows)[: args.count])
    engine = create_engine(find_weights(args.model), args.engine)
    predictor = Predictor(engine)
    print(f"{args.model} on {records.name}, fold {args.fold}, {len(rows):,} faces\n")
    if known := int(is_seen(engine.spec.trained_on, records, rows).sum()):
        print(f"NOTE: {known:,} of them show persons whom these weights were trained on\n")
    found = {}
    for name, change in CONDITIONS.items():
        found[name] = _measure(predictor, records, rows, change)
        print(f"\r{len(found)} of {len(CONDITIONS)} conditions", end="", file=sys.stderr)
    print(file=sys.stderr)
    plain = found["as they are"]
    header = ["", "faces", "gender, %", "age error, years", "age inside its range, %"]
    exact = (records.age_low == records.age_high) & (records.age_low != UNKNOWN)
    divisions: dict[str, Iterator[tuple[str, np.ndarray]]] = {
        "pictures": ((name, np.ones(len(rows), bool)) for name in CONDITIONS),
        "gender": ((name, records.labels["gender"][rows] == i) for i, name in enumerate(GENDERS)),
        "age": (
            (f"{low}-{high}", (records.age_low[rows] == low) & (records.age_high[rows] == high))
            for low, high in sorted(
                set(
                    zip(
                        records.age_low[rows].tolist(), records.age_high[rows].tolist(), strict=True
                    )
                )
            )
            if low != UNKNOWN and low != high
        ),
        "exact ages": iter([("known to the year", exact[rows])] * bool(exact[rows].any())),
    }
    if records.race is not None:
        race = records.race[rows]
        divisions["race"] = ((name, race == i) for i, name in enumerate(RACES))
    for division, groups in divisions.items():
        lines = [
            _line(name, found[name] if division == "pictures" else plain, chosen)
            for name, chosen in groups
        ]
        print(table([division, *header[1:]], lines), end="\n\n")


def _measure(predictor: Predictor, records: Any, rows: np.ndarray, change: Callable) -> Figures:
    ages, males = [], []
    for start in range(0, len(rows), BATCH):
        images = []
        for row in rows[start : start + BATCH]:
            data = np.frombuffer(records.images[row], np.uint8)
            image: Any = cv2.imdecode(data, cv2.IMREAD_COLOR)
            images.append(change(np.ascontiguousarray(image[..., ::-1])))
        for told in predictor.predict(images):
            ages.append(np.nan if told.age is None else told.age)
            males.append(told.gender)
    low, high, age = records.age_low[rows], records.age_high[rows], np.array(ages)
    error = np.maximum(np.maximum(low - age, age - high), 0)
    unknown = (low == UNKNOWN) | np.isnan(age)  # A network may tell groups only.
    gender = records.labels["gender"][rows]
    right = np.array([GENDERS.index(name) if name else UNKNOWN for name in males]) == gender
    return {
        "age": np.where(unknown, np.nan, error),
        "inside": np.where(unknown, np.nan, np.maximum(low - age, age - high) < 0.5),
        "gender": np.where(gender == UNKNOWN, np.nan, right),
    }


def _line(name: str, figures: Figures, chosen: np.ndarray) -> list[str]:
    def mean(figure: str, factor: float = 1) -> str:
        values = figures[figure][chosen]
        known = values[~np.isnan(values)]
        return f"{factor * known.mean():.2f}" if len(known) else "–"

    return [name, f"{chosen.sum():,}", mean("gender", 100), mean("age"), mean("inside", 100)]


if __name__ == "__main__":
    with one_line_errors():
        main()
