"""Measures a predictor on a prepared data set: overall, by subgroup, and on degraded images.

python scripts/measure_predictor.py [--data_set=fairface/partial] [--fold=0] [--model=default]

`Predictor.predict` is applied to every image of one fold (fold 0 is the test set of data sets that
have one). The age error is the distance in years from the labelled age range, 0 inside it; if the
exact age is known it is the absolute error.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from typing import Any

import cv2
import numpy as np

from agenet.errors import ArgumentParser, UserError, one_line_errors
from agenet.inference.predictor import Predictor
from agenet.labels import GENDERS, RACES, UNKNOWN
from agenet.runs.series import table

BATCH = 256
HEADER = ["faces", "gender, %", "age error, years", "age inside its range, %"]
Figures = dict[str, np.ndarray]  # by name, float [N]; NaN where the label is unknown


def _warp(image: np.ndarray, degrees: float, scale: float, border: int) -> np.ndarray:
    """Rotates and scales about the centre of the image."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
    return cv2.warpAffine(image, matrix, (width, height), borderMode=border)


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


CONDITIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "unchanged": lambda image: image,
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "cropped a third closer": lambda image: _warp(image, 0, 1.33, cv2.BORDER_REPLICATE),
    "cropped a third wider": lambda image: _warp(image, 0, 0.75, cv2.BORDER_REPLICATE),
    "rotated by 15 degrees": lambda image: _warp(image, 15, 1, cv2.BORDER_CONSTANT),
    "grey": lambda image: cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB),
    "48 pixels": lambda image: _resize(image, 48),
    "24 pixels": lambda image: _resize(image, 24),
}


def main() -> None:
    parser = ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data_set", default="fairface/partial", help="DATA_SET/CONFIG")
    add("--data_dir", default="", help="folder of the prepared data sets")
    add("--fold", type=int, default=0)
    add("--labels", default="extended", help="which age strings of Adience are used")
    add("--model", default="default", help="weights: a name, a file or a run")
    add("--engine", default="auto")
    add("--count", type=int, default=0, help="number of random faces; 0: all")
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
        print(f"NOTE: {known:,} of them show persons in the training data of these weights\n")
    figures = {}
    for name, change in CONDITIONS.items():
        figures[name] = _measure(predictor, records, rows, change)
        print(f"\r{len(figures)} of {len(CONDITIONS)} conditions", end="", file=sys.stderr)
    print(file=sys.stderr)
    everybody = np.ones(len(rows), bool)
    lines = [_line(name, found, everybody) for name, found in figures.items()]
    print(table(["images", *HEADER], lines), end="\n\n")
    for division, groups in _subgroups(records, rows).items():
        lines = [_line(name, figures["unchanged"], chosen) for name, chosen in groups]
        print(table([division, *HEADER], lines), end="\n\n")


def _subgroups(records: Any, rows: np.ndarray) -> dict[str, Iterable[tuple[str, np.ndarray]]]:
    """Divisions of the faces at `rows` into groups: (name, bool [N]) of each."""
    low, high, gender = (
        records.age_low[rows],
        records.age_high[rows],
        records.labels["gender"][rows],
    )
    ranges = np.unique(np.stack([low, high], 1)[(low != UNKNOWN) & (low != high)], axis=0).tolist()
    divisions: dict[str, Iterable[tuple[str, np.ndarray]]] = {
        "gender": [(name, gender == i) for i, name in enumerate(GENDERS)],
        "age": [(f"{a}-{b}", (low == a) & (high == b)) for a, b in ranges],
    }
    exact = (low == high) & (low != UNKNOWN)
    if exact.any():
        divisions["exact ages"] = [("known to the year", exact)]
    if records.race is not None:
        divisions["race"] = [(name, records.race[rows] == i) for i, name in enumerate(RACES)]
    return divisions


def _measure(predictor: Predictor, records: Any, rows: np.ndarray, change: Callable) -> Figures:
    """Predicts the changed images at `rows` and compares with their labels."""
    ages, genders = [], []
    for start in range(0, len(rows), BATCH):
        images = []
        for row in rows[start : start + BATCH]:
            encoded = np.frombuffer(records.images[row], np.uint8)
            images.append(change(cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)))
        for prediction in predictor.predict(images):
            ages.append(np.nan if prediction.age is None else prediction.age)
            genders.append(GENDERS.index(prediction.gender) if prediction.gender else UNKNOWN)
    low, high, age = records.age_low[rows], records.age_high[rows], np.array(ages)
    outside = np.maximum(low - age, age - high)
    unknown = (low == UNKNOWN) | np.isnan(age)  # A network may predict groups only.
    gender = records.labels["gender"][rows]
    return {
        "age": np.where(unknown, np.nan, np.maximum(outside, 0)),
        "inside": np.where(unknown, np.nan, outside < 0.5),
        "gender": np.where(gender == UNKNOWN, np.nan, np.array(genders) == gender),
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
