"""Predicts age and gender of faces: of images that show one face each, or of whole photographs.

>>> from agenet import Predictor
>>> predictor = Predictor.load()  # doctest: +SKIP
>>> for face in predictor.predict_faces(image):  # doctest: +SKIP
...     print(face.detection.box, face.prediction.age, face.prediction.gender)

Takes arrays only: no camera, image file, window or TensorFlow here.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agenet.data.decoding import to_square
from agenet.faces.face import Detection, Detector, Face, Prediction
from agenet.inference.engines import MAX_BATCH, Engine, create_engine
from agenet.inference.finder import FaceFinder
from agenet.inference.postprocess import Postprocess
from agenet.inference.shared_detector import SharedDetector
from agenet.places.weights import find_weights
from agenet.weights.bundled import DEFAULT


class Predictor:
    """Predicts age and gender of faces, in any number of threads.

    It can be pickled: the copy loads the same weights again when it is first used, so it can be
    passed to the processes of multiprocessing ("spawn"), joblib or Spark.

    Args:
        engine: runs the network.
        detector: finds faces in whole images: "auto", "yunet", "hog", the path of a YuNet ONNX
            file, or a detector, see `agenet.faces.detectors.create_detector`. "auto" is resolved
            at the first image that needs it.
        align: rotate faces upright by their landmarks, if the detector provides them.
        age_groups: the age groups to predict, such as ["0-17", "18-64", "65-100"]; by default
            `agenet.labels.AGE_GROUPS`. A year between two groups counts towards the nearer one.
        threads: number of CPU threads of a detector that is called by name.

    Raises:
        UserError: there is no such detector, the groups are invalid, or the network predicts only
            its own age groups.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        detector: str | Path | Detector | None = "auto",
        align: bool = True,
        age_groups: Sequence[str] = (),
        threads: int | None = None,
    ) -> None:
        self._engine = engine
        self._postprocess = Postprocess(engine.spec, age_groups)
        shared = SharedDetector("auto" if detector is None else detector, threads)
        self._finder = FaceFinder(shared, engine.spec.stored_size, align)

    @staticmethod
    def load(
        name_or_path: str | Path = DEFAULT,
        *,
        detector: str | Path | Detector | None = "auto",
        align: bool = True,
        age_groups: Sequence[str] = (),
        engine: str = "auto",
        threads: int | None = None,
    ) -> "Predictor":
        """Loads a predictor.

        Args:
            name_or_path: "default" (the bundled weights), a `.safetensors` file written by agenet,
                the `--workdir` of a finished run, "hf://user/name" or "hf://user/name@revision",
                which `agenet push` has published, or the address of a file or a run, such as
                "s3://bucket/runs/a".
            detector, align, age_groups: see `Predictor`.
            engine: "onnxruntime", "jax" or "auto", see `agenet.inference.engines`.
            threads: number of CPU threads, see `agenet.inference.engines.create_engine`.

        Raises:
            UserError: there are no such weights, they predict neither age nor gender, there is no
                such detector or engine, or the groups are invalid.
        """
        return Predictor(
            create_engine(find_weights(name_or_path), engine, threads),
            detector=detector,
            align=align,
            age_groups=age_groups,
            threads=threads,
        )

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Predicts images that show one face each, in their order.

        Args:
            images: RGB uint8 [H, W, 3] of any sizes. The face fills the middle of the image about
                as in FairFace's images, whose sides are 1.1 times those of YuNet's boxes.

        Raises:
            ValueError: one of them is not such an image.
        """
        squares = [to_square(_check_image(image), self._finder.size) for image in images]
        predictions: list[Prediction] = []
        for start in range(0, len(squares), MAX_BATCH):
            log_probs = self._engine(np.stack(squares[start : start + MAX_BATCH]))
            predictions += self._postprocess(log_probs)
        return predictions

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Returns the faces in an RGB image uint8 [H, W, 3], largest first.

        Raises:
            ValueError: it is not such an image.
            UserError: no detector is available.
        """
        return self._finder.detect(_check_image(image))

    def is_coarse(self, detection: Detection) -> bool:
        """Whether more pixels of a face that `detect` found would change its prediction."""
        return self._finder.is_coarse(detection)

    def crop(self, image: np.ndarray, detections: Sequence[Detection]) -> list[np.ndarray]:
        """Cuts N faces out of an RGB image uint8 [H, W, 3], as `predict` takes them.

        Raises:
            ValueError: it is not such an image.
            UserError: no detector is available.
        """
        return self._finder.crop(_check_image(image), detections)

    def predict_faces(
        self, image: np.ndarray, detections: Sequence[Detection] | None = None
    ) -> list[Face]:
        """Predicts the faces in a whole image.

        Args:
            image: RGB uint8 [H, W, 3].
            detections: the faces to predict, in this order; by default those that the detector
                finds, largest first.

        Raises:
            ValueError: it is not such an image.
            UserError: no detector is available.
        """
        _check_image(image)
        if detections is None:
            detections = self._finder.detect(image)
        faces: list[Face] = []
        # Cropped one batch at a time, so that memory does not grow with the number of faces.
        for start in range(0, len(detections), MAX_BATCH):
            some = detections[start : start + MAX_BATCH]
            faces += map(Face, some, self.predict(self._finder.crop(image, some)))
        return faces


def _check_image(image: np.ndarray) -> np.ndarray:
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[-1] != 3
        or not image.size
    ):
        shape = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else image
        raise ValueError(f"an image must be RGB uint8 [H, W, 3], not {str(shape)[:200]}")
    return image
