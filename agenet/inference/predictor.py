"""Ages and genders of faces: of pictures that show one, or of those in a whole picture.

>>> from agenet.inference.predictor import Predictor
>>> predictor = Predictor.load()  # doctest: +SKIP
>>> for face in predictor.predict_faces(image):  # doctest: +SKIP
...     print(face.detection.box, face.prediction.age, face.prediction.gender)

No camera, file of pictures, window or TensorFlow in here.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agenet.data.square import to_square
from agenet.errors import UserError
from agenet.faces.crop import crop_face
from agenet.faces.detectors import find_detector
from agenet.faces.face import Detection, Detector, Face, Prediction
from agenet.inference.engines import MAX_BATCH, Engine, create_engine
from agenet.labels import AGE_GROUPS, GENDERS, MAX_AGE, nearest_range
from agenet.weights.bundled import DEFAULT, find_weights


class Predictor:
    """Tells ages and genders. Not for two threads at once, because detectors are not.

    Args:
        engine: runs the network.
        detector: finds the faces of whole pictures; by default the one that
            `agenet.faces.detectors.find_detector` chooses once it is needed.
        align: turn faces upright by their landmarks, where the detector tells them.
        age_groups: the grouping to answer in, such as ["0-17", "18-64", "65-100"]; by default
            that of `agenet.labels.AGE_GROUPS`. A year between two groups counts for the nearer.

    Raises:
        UserError: the groups make no sense, or the network tells ages only by its own groups.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        detector: Detector | None = None,
        align: bool = True,
        age_groups: Sequence[str] = (),
    ) -> None:
        self._engine = engine
        self._detector = detector
        self._align = align
        self._size = engine.spec.stored_size
        self._by_year = engine.spec.heads.get("age") in ("distribution", "ordinal")
        self._groups = tuple(age_groups) or AGE_GROUPS
        if age_groups and not self._by_year:
            raise UserError("this network tells ages by its own groups only, not by year")
        self._group_of_year = _group_of_year(self._groups)

    @staticmethod
    def load(
        name_or_path: str | Path = DEFAULT,
        *,
        detector: Detector | None = None,
        align: bool = True,
        age_groups: Sequence[str] = (),
        engine: str = "auto",
    ) -> "Predictor":
        """The predictor with these weights.

        Args:
            name_or_path: "default" for those that come with agenet, a `.safetensors` file of ours,
                or the `--workdir` of a finished run.
            detector, align, age_groups: see `Predictor`.
            engine: "onnxruntime", "jax" or "auto", see `agenet.inference.engines`.

        Raises:
            UserError: there are no such weights, they tell neither age nor gender, or the groups
                make no sense.
        """
        return Predictor(
            create_engine(find_weights(name_or_path), engine),
            detector=detector,
            align=align,
            age_groups=age_groups,
        )

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """What the network tells of pictures that show one face each, in their order.

        Args:
            images: RGB uint8 [H, W, 3] of any sizes. The face fills the middle of the picture
                about as in FairFace's pictures, whose sides are 1.1 times those of YuNet's boxes.

        Raises:
            ValueError: one of them is not such a picture.
        """
        squares = [to_square(_checked(image), self._size) for image in images]
        predictions: list[Prediction] = []
        for start in range(0, len(squares), MAX_BATCH):
            found = self._engine(np.stack(squares[start : start + MAX_BATCH]))
            predictions += self._tell(found)
        return predictions

    def predict_faces(
        self, image: np.ndarray, detections: Sequence[Detection] | None = None
    ) -> list[Face]:
        """What the network tells of the faces of a picture, RGB uint8 [H, W, 3].

        Of those given, or else of those that the detector finds, the largest first.

        Raises:
            ValueError: it is not such a picture.
            UserError: there is no detector, see `agenet.faces.detectors.find_detector`.
        """
        _checked(image)
        if self._detector is None:
            self._detector = find_detector()
        if detections is None:
            detections = self._detector.detect(image)
        faces: list[Face] = []
        # Cut out and seen a batch at a time, so that a crowd takes no more memory than few.
        for start in range(0, len(detections), MAX_BATCH):
            some = detections[start : start + MAX_BATCH]
            crops = [
                crop_face(
                    image,
                    detection,
                    self._size,
                    detector_name=self._detector.name,
                    align=self._align,
                )
                for detection in some
            ]
            faces += map(Face, some, self.predict(crops))
        return faces

    def _tell(self, log_probs: dict[str, np.ndarray]) -> list[Prediction]:
        probabilities = {
            task: np.exp(values.astype(np.float64)) for task, values in log_probs.items()
        }
        count = len(next(iter(probabilities.values())))
        predictions = []
        for row in range(count):
            told: dict[str, object] = {}
            if "age" in probabilities:
                groups = probabilities["age"][row]
                if self._by_year:
                    years = probabilities["years"][row]
                    told["age"] = float(years @ np.arange(MAX_AGE + 1) / years.sum())
                    groups = np.bincount(self._group_of_year, years, len(self._groups))
                told |= self._tell_group(groups / groups.sum())
            if "gender" in probabilities:
                genders = probabilities["gender"][row]
                best = int(genders.argmax())
                told |= {
                    "gender": GENDERS[best],
                    "gender_probability": float(genders[best] / genders.sum()),
                }
            predictions.append(Prediction(**told))  # type: ignore[arg-type]
        return predictions

    def _tell_group(self, groups: np.ndarray) -> dict[str, object]:
        return {
            "age_group": self._groups[int(groups.argmax())],
            "age_probabilities": dict(zip(self._groups, groups.tolist(), strict=True)),
        }


def _checked(image: np.ndarray) -> np.ndarray:
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[-1] != 3
        or not image.size
    ):
        shape = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else image
        raise ValueError(f"a picture must be RGB uint8 [H, W, 3], not {str(shape)[:200]}")
    return image


def _group_of_year(groups: Sequence[str]) -> np.ndarray:
    """For every year from 0 to `MAX_AGE` the index of its group: int [101]."""
    ranges: list[tuple[int, int]] = []
    for group in groups:
        first, dash, last = group.partition("-")
        if not (dash and first.isdecimal() and last.isdecimal()):
            raise UserError(f'age group "{group}" must be like 18-64, in whole years')
        ranges.append((int(first), int(last)))
        after = ranges[-2][1] if len(ranges) > 1 else -1
        if not after < ranges[-1][0] <= ranges[-1][1] <= MAX_AGE:
            raise UserError(
                f'age group "{group}": groups must not overlap, must increase, and end by {MAX_AGE}'
            )
    return np.array([nearest_range(year, ranges) for year in range(MAX_AGE + 1)])
