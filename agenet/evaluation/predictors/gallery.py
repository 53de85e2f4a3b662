"""Chooses the faces that a page of an evaluation shows, and makes a browser of them."""

import json
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from agenet.data.decoding import to_square
from agenet.errors import printable
from agenet.evaluation.page import Browser, Card, Cell, Choice, Image
from agenet.evaluation.predictors.faces import Division, LabelledFaces
from agenet.evaluation.predictors.measures import face_values
from agenet.evaluation.predictors.predictions import Predictions
from agenet.evaluation.summary import percent
from agenet.labels import AGE_GROUPS, GENDERS, TASK_CLASSES, UNKNOWN

THUMBNAIL = 96  # pixels
_QUALITY = 75
_LONGEST_NAME = 60
# Correct predictions are shown to compare errors with: of a cell one for this many errors.
_ERRORS_FOR_ONE = 4

# The images of faces at some positions [K], uint8 RGB [H, W, 3]; None where there is none.
Images = Callable[[Sequence[int]], Sequence[np.ndarray | None]]


def choose_faces(faces: LabelledFaces, predictors: Sequence[Predictions], count: int) -> np.ndarray:
    """Positions of the most confident errors and of some correct predictions, int64 [K <= count].

    Every cell of every confusion matrix gets about as many faces as the others, the most confident
    ones first, so that none is empty on the page. Where there are no probabilities, faces with
    large age errors come first.
    """
    best = np.full(len(faces), np.inf)
    for predictions in predictors:
        error = np.nan_to_num(face_values(faces, predictions)["range_error"])
        for task, names in TASK_CLASSES.items():
            true, predicted = faces.label(task), predictions.predicted(task)
            confidence = np.nan_to_num(predictions.probability(task), nan=0.0)
            known = np.flatnonzero((true != UNKNOWN) & (predicted != UNKNOWN))
            order = known[np.lexsort((-error[known], -confidence[known]))]
            cells = true[order] * len(names) + predicted[order]
            for cell in np.unique(cells):
                members = order[cells == cell]
                is_correct = cell % len(names) == cell // len(names)
                rank = np.arange(len(members), dtype=np.float64)
                rank = rank * _ERRORS_FOR_ONE if is_correct else rank
                best[members] = np.minimum(best[members], rank)
    order = np.argsort(best, kind="stable")[:count]
    return order[np.isfinite(best[order])]


def make_browser(
    faces: LabelledFaces,
    predictors: Sequence[Predictions],
    divisions: Sequence[Division],
    positions: np.ndarray,
    images: Images,
) -> Browser:
    """A browser of the faces at `positions`; those whose image is gone are left out.

    Args:
        faces: N labelled faces.
        predictors: for these.
        divisions: of these.
        positions: int [K].
        images: loads them.
    """
    errors = [face_values(faces, each)["range_error"] for each in predictors]
    cards = []
    for position, image in zip(positions.tolist(), images(positions.tolist()), strict=True):
        if image is not None:
            name = printable(faces.describe(position), 1000)
            picture = Image(f"face_{position}.webp", _to_webp(image), f"Face, {name}")
            lines = _lines(faces, predictors, position, name)
            data = _data(faces, predictors, divisions, errors, position)
            cards.append(Card(picture, lines, json.dumps(data)))
    any_ = ("", [("", "any")])
    names = [(str(i), printable(each.name, 100)) for i, each in enumerate(predictors)]
    groups = [
        (each.name, [(f"{each.name}: {name}", name) for name in each.groups]) for each in divisions
    ]
    shows = [("errors", "errors"), ("correct", "correct predictions"), ("all", "all")]
    sorts = [
        ("sure", "most confident first"),
        ("unsure", "least confident first"),
        ("years", "largest age error first"),
    ]
    choices = [
        Choice("predictor", "Predictor", [("", names)]),
        Choice("task", "Task", [("", [(task, task) for task in _tasks(faces, predictors)])]),
        Choice("show", "Show", [("", shows)]),
        Choice("true", "True", [any_]),
        Choice("predicted", "Predicted", [any_]),
        Choice("group", "Subgroup", [any_, *groups]),
        Choice("sort", "Order", [("", sorts)]),
    ]
    return Browser(cards, choices, json.dumps(TASK_CLASSES))


def _tasks(faces: LabelledFaces, predictors: Sequence[Predictions]) -> list[str]:
    def occurs(task: str) -> bool:
        known = faces.label(task) != UNKNOWN
        return any((known & (each.predicted(task) != UNKNOWN)).any() for each in predictors)

    return [task for task in ("gender", "age") if occurs(task)] or ["gender"]


def _lines(
    faces: LabelledFaces, predictors: Sequence[Predictions], position: int, name: str
) -> list[Cell]:
    gender, age = faces.gender[position], faces.describe_age(position)
    truth = ["" if gender == UNKNOWN else GENDERS[gender], age]
    lines = [Cell(f"true: {', '.join(filter(None, truth)) or 'unknown'}")]
    for each in predictors:
        before = f"{printable(each.name, 40)}: " if len(predictors) > 1 else ""
        for task in ("gender", "age"):
            if text := _said(each, task, position):
                true, predicted = faces.label(task)[position], each.predicted(task)[position]
                mark = "" if true == UNKNOWN else ("✓ " if true == predicted else "✗ ")
                lines.append(Cell(f"{before}{mark}{text}", strong=mark.startswith("✗")))
    # The end of a path tells more than its beginning.
    short = name if len(name) <= _LONGEST_NAME else f"…{name[-_LONGEST_NAME:]}"
    return [*lines, Cell(short)]


def _said(predictions: Predictions, task: str, position: int) -> str:
    predicted = predictions.predicted(task)[position]
    if predicted == UNKNOWN:
        return ""
    probability = predictions.probability(task)[position]
    sure = "" if np.isnan(probability) else f", {percent(float(probability), 0)}\N{NO-BREAK SPACE}%"
    if task == "gender":
        return f"{GENDERS[predicted]}{sure}"
    age = predictions.age[position]
    group = AGE_GROUPS[predicted]
    return f"{group}{sure}" if np.isnan(age) else f"{age:.0f} ({group}{sure})"


def _data(
    faces: LabelledFaces,
    predictors: Sequence[Predictions],
    divisions: Sequence[Division],
    errors: Sequence[np.ndarray],
    position: int,
) -> dict[str, object]:
    """What templates/browser.js reads."""

    def number(value: float) -> float | None:
        return None if np.isnan(value) else round(float(value), 3)

    return {
        "true": {task: int(faces.label(task)[position]) for task in TASK_CLASSES},
        "by": [
            {
                task: [
                    int(each.predicted(task)[position]),
                    number(each.probability(task)[position]),
                    number(error[position]),
                ]
                for task in TASK_CLASSES
            }
            for each, error in zip(predictors, errors, strict=True)
        ],
        "groups": [
            f"{each.name}: {each.groups[each.member[position]]}"
            for each in divisions
            if each.member[position] != UNKNOWN
        ],
    }


def _to_webp(image: np.ndarray) -> bytes:
    """An image RGB [H, W, 3] of one face, as a small square."""
    bgr = cv2.cvtColor(to_square(image, THUMBNAIL), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])[1].tobytes()
