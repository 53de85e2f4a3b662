"""Evaluates weights, runs, plugins and predictions of other programs on labelled faces."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from agenet.errors import UserError, printable
from agenet.evaluation.predictors.contents import Evaluation
from agenet.evaluation.predictors.faces import LabelledFaces, divide_faces
from agenet.evaluation.predictors.gallery import THUMBNAIL, choose_faces, make_browser
from agenet.evaluation.predictors.measures import (
    Estimates,
    compare,
    count_groups,
    estimates,
    face_values,
    measure,
)
from agenet.evaluation.predictors.prediction_files import read_predictions
from agenet.evaluation.predictors.predictions import Predictions, from_predictions
from agenet.evaluation.predictors.report import write_evaluation
from agenet.faces.face import Prediction
from agenet.inference.conditions import CONDITIONS, UNCHANGED
from agenet.inference.face_crops import FaceFiles, FaceSource
from agenet.labels import UNKNOWN
from agenet.runs.evaluated_models import Model
from agenet.runs.labelled_faces import TestFaces
from agenet.runs.lineage import is_seen

MAX_PREDICTORS = 10
_AT_ONCE = 32  # faces in memory
_SHOWN = 5  # problems in a message
_LONGEST_NAME = 60


def evaluate(
    test: TestFaces,
    models: Sequence[Model],
    files: Sequence[tuple[str, Path]],
    *,
    out: Path,
    by: Sequence[str] = (),
    conditions: bool = False,
    shown_faces: int,
    command: str,
) -> Evaluation:
    """Predicts the faces, measures, and writes the report.

    A predictor that fails on the way is left out, so that the work of the others is not lost.

    Args:
        test: the faces.
        models: predictors to run.
        files: names and tables of predictions of other programs.
        out: folder of the report.
        by: columns that divide the faces into subgroups.
        conditions: also predict changed images, see `agenet.inference.conditions`.
        shown_faces: faces on the page at most.
        command: that the user typed.

    Raises:
        UserError: a predictor or table cannot be used with these faces, or no predictor is left.
    """
    faces = test.faces
    _check_names([*(model.name for model in models), *(name for name, _ in files)])
    always = ["race"] if test.records and "race" in faces.columns else []
    divisions = divide_faces(faces, [*always, *by])
    if not ((faces.gender != UNKNOWN).any() or (faces.age_low != UNKNOWN).any()):
        raise UserError(f"{faces.name} has no labels: neither an age nor a gender is known")
    from_files = [read_predictions(name, path, faces) for name, path in files]
    changes = list(CONDITIONS) if conditions else [UNCHANGED]
    predicted, problems, failed = _predict(test, models, changes)
    if models and len(failed) == len(models) and not files:
        raise UserError(failed[models[0].name])
    models = [model for model in models if model.name not in failed]
    notes = [*test.notes, *_describe_problems(faces, problems)]
    notes += [f"Without {name}, which failed: {line}." for name, line in failed.items()]
    if isinstance(test.source, FaceFiles) and test.source.several:
        notes.append(
            f"In {test.source.several:,} images several faces were found: the largest counts."
        )
    predictors = [_with_notes(test, model, predicted[model.name][UNCHANGED]) for model in models]
    predictors += from_files
    for each in predictors:
        if not any(np.isfinite(v).any() for v in face_values(faces, each).values()):
            raise UserError(
                f"{each.name} predicts nothing that {faces.name} has labels for: {_says(each)}"
            )
    total = len(predictors) * count_groups(divisions)
    with tqdm(total=total, desc="measuring", unit=" groups", delay=3, disable=None) as bar:
        measured = [measure(faces, each, divisions, bar.update) for each in predictors]
    evaluation = Evaluation(
        faces=faces,
        measured=measured,
        differences=compare(faces, predictors),
        conditions=_measure_conditions(faces, predicted) if conditions else {},
        notes=notes,
        command=command,
        failed=[*failed.values()],
    )
    browser = None
    if shown_faces:
        positions = choose_faces(faces, predictors, shown_faces)

        def load(positions: Sequence[int]) -> list[np.ndarray | None]:
            return _thumbnails(test.source, positions)

        browser = make_browser(faces, predictors, divisions, positions, load)
    write_evaluation(out, evaluation, browser)
    return evaluation


def _check_names(names: Sequence[str]) -> None:
    if len(names) > MAX_PREDICTORS:
        raise UserError(f"{len(names)} predictors: at most {MAX_PREDICTORS} fit on one page")
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(
                f'two predictors are called "{name}": give one of them a name, as in '
                f"--model NAME={name}"
            )
        if not name or len(name) > _LONGEST_NAME or printable(name) != name:
            raise UserError(
                f'"{printable(name)}" is no name of a predictor: use 1 to {_LONGEST_NAME} '
                "printable characters, as in --model NAME=..."
            )


def _predict(
    test: TestFaces, models: Sequence[Model], changes: Sequence[str]
) -> tuple[dict[str, dict[str, Predictions]], dict[int, str], dict[str, str]]:
    """Predictions of each model by condition, and what went wrong.

    Returns:
        predictions by name of the model and condition; why faces have no image, by position; why
        models failed, by name: they have no predictions.
    """
    count = len(test.faces)
    problems: dict[int, str] = {}
    failed: dict[str, str] = {}
    if not models:
        return {}, problems, failed
    sizes = sorted({model.size for model in models})
    found: list[dict[str, list[Prediction | None]]] = [
        {change: [None] * count for change in changes} for _ in models
    ]
    with tqdm(total=count, desc="predicting", unit=" faces", disable=None) as bar:
        for start in range(0, count, _AT_ONCE):
            positions = range(start, min(start + _AT_ONCE, count))
            there, crops = [], []
            for position, loaded in zip(positions, test.source.load(positions, sizes), strict=True):
                if isinstance(loaded, str):
                    problems[position] = loaded
                else:
                    there.append(position)
                    crops.append(loaded)
            for model, results in zip(models, found, strict=True):
                if not crops or model.name in failed:
                    continue
                try:
                    for change, result in results.items():
                        images = [CONDITIONS[change](crop[model.size]) for crop in crops]
                        for position, said in zip(there, model.predict(images), strict=True):
                            result[position] = _without_distribution(said)
                except UserError as error:
                    failed[model.name] = str(error)
            if len(failed) == len(models):
                return {}, problems, failed
            bar.update(len(positions))
    if len(problems) == count:
        raise UserError(
            f"none of the {count:,} images of {test.faces.name} can be used: "
            f"{_first_problems(test.faces, problems)}"
        )
    predictions = {
        m.name: {c: from_predictions(m.name, said, m.source) for c, said in results.items()}
        for m, results in zip(models, found, strict=True)
        if m.name not in failed
    }
    return predictions, problems, failed


def _without_distribution(prediction: Prediction | None) -> Prediction | None:
    """A prediction without the 101 numbers that would fill the memory and that nobody needs."""
    if prediction is None:
        return None
    group = prediction.age_group or ""
    probabilities = {group: (prediction.age_probabilities or {}).get(group, math.nan)}
    return replace(prediction, age_distribution=None, age_probabilities=probabilities)


def _describe_problems(faces: LabelledFaces, problems: Mapping[int, str]) -> list[str]:
    if not problems:
        return []
    return [
        f"{len(problems):,} of {len(faces):,} faces could not be shown to the models, which have "
        f"no prediction for them: {_first_problems(faces, problems)}."
    ]


def _first_problems(faces: LabelledFaces, problems: Mapping[int, str]) -> str:
    first = [
        f"{printable(faces.describe(position), 200)}: {problems[position]}"
        for position in [*problems][:_SHOWN]
    ]
    return "; ".join(first) + ("; ..." if len(problems) > _SHOWN else "")


def _with_notes(test: TestFaces, model: Model, predictions: Predictions) -> Predictions:
    """Adds which of the faces the model was trained on, as far as that is known."""
    if model.trained_on is None or test.records is None:
        return predictions
    seen = int(is_seen(model.trained_on, test.records, test.faces.row).sum())
    if not seen:
        return predictions
    return predictions.with_notes(
        f"{seen:,} of the {len(test.faces):,} faces show subjects that these weights were trained "
        "on. Its results on them do not tell how well it predicts other people."
    )


def _says(predictions: Predictions) -> str:
    tasks = [task for task in ("age", "gender") if (predictions.predicted(task) != UNKNOWN).any()]
    return f"it predicts {' and '.join(tasks)}" if tasks else "it predicts nothing at all"


def _measure_conditions(
    faces: LabelledFaces, predicted: Mapping[str, Mapping[str, Predictions]]
) -> dict[str, dict[str, Estimates]]:
    resampled = faces.resampled()
    return {
        name: {
            change: estimates(face_values(faces, each), resampled) for change, each in found.items()
        }
        for name, found in predicted.items()
    }


def _thumbnails(source: FaceSource, positions: Sequence[int]) -> list[np.ndarray | None]:
    images: list[np.ndarray | None] = []
    with tqdm(total=len(positions), desc="faces", unit=" faces", delay=3, disable=None) as bar:
        for start in range(0, len(positions), _AT_ONCE):
            part = positions[start : start + _AT_ONCE]
            for loaded in source.load(part, [THUMBNAIL]):
                images.append(None if isinstance(loaded, str) else loaded[THUMBNAIL])
            bar.update(len(part))
    return images


def default_folder(test: TestFaces, names: Sequence[str]) -> Path:
    """The folder of a report that has no other: evaluation/ with predictors and data."""
    text = "-".join([*names[:3], test.faces.name])
    return Path("evaluation") / re.sub(r"[^\w.]+", "-", text).strip("-.")[:100]
