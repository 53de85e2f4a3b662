"""Loads labelled faces as images of one face each, from a prepared data set or from image files."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from agenet.data.decoding import to_square
from agenet.data.records import Records
from agenet.data.stored import read_images
from agenet.distributed.cores import available_cores
from agenet.errors import UserError
from agenet.faces.crop import crop_face
from agenet.faces.detectors import create_detector
from agenet.faces.face import Box, Detection, Detector
from agenet.faces.image_io import ImageFileError, read_image_file

# Images of one face are as large as this at most; larger ones are reduced to what is predicted.
_LARGEST = 1024
NO_FACE = "no face found"

Crops = dict[int, np.ndarray]  # by the side that was asked for


class FaceSource(Protocol):
    """Where the images of N labelled faces are."""

    def load(self, positions: Sequence[int], sizes: Sequence[int]) -> list[Crops | str]:
        """Loads the faces at some positions.

        Args:
            positions: from 0 to N - 1.
            sizes: in pixels.

        Returns:
            For each face an image RGB uint8 [H, W, 3] for each size, or why there is none. A face
            that is cut from a larger image has that size; one that is an image of its own is as it
            is, unless it is very large.
        """
        ...


class PreparedFaces:
    """The images of a prepared data set, which show one face each.

    Args:
        records: the data set.
        rows: of the N faces.
    """

    def __init__(self, records: Records, rows: np.ndarray) -> None:
        self._images, self._rows = records.images, rows

    def load(self, positions: Sequence[int], sizes: Sequence[int]) -> list[Crops | str]:
        rows = self._rows[np.asarray(positions, np.int64)]
        found: list[Crops | str] = []
        for row, encoded in zip(rows.tolist(), read_images(self._images, rows), strict=True):
            image = cv2.imdecode(
                np.frombuffer(encoded, np.uint8),
                cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION,
            )
            if image is None:
                raise UserError(
                    f"the prepared image of row {row} does not decode: prepare the data set again "
                    "with --overwrite"
                )
            found.append(_reduced(image, sizes))
        return found


class FaceFiles:
    """Faces in image files: cut at a box, found by a detector, or the whole image.

    Args:
        paths: the files [N].
        boxes: the faces in pixels of the file, with the image upright; None for a whole image.
        detector: finds the faces that have no box, by its name or file, see
            `agenet.faces.detectors.create_detector`; None if the whole image is the face.

    Raises:
        UserError: there is no such detector.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        boxes: Sequence[Box | None] | None = None,
        detector: str | None = None,
    ) -> None:
        self._paths, self._boxes = paths, boxes
        self._detector: Detector | None = create_detector(detector) if detector else None
        self._found: dict[int, Detection | str] = {}
        self._several: set[int] = set()

    @property
    def several(self) -> int:
        """Images so far in which more than one face was found; the largest was taken."""
        return len(self._several)

    def load(self, positions: Sequence[int], sizes: Sequence[int]) -> list[Crops | str]:
        # A thread holds a whole image, of which it returns the crops.
        with ThreadPoolExecutor(min(available_cores(), 8)) as pool:
            return list(pool.map(lambda at: self._load(int(at), sizes), positions))

    def _load(self, position: int, sizes: Sequence[int]) -> Crops | str:
        try:
            file = read_image_file(self._paths[position])
        except ImageFileError as error:
            return error.reason
        image = file.pixels
        box = self._boxes[position] if self._boxes is not None else None
        if box is not None:  # In pixels of the file, of which a huge image has fewer here.
            box = Box(*(side / file.reduction for side in box))
        if box is None and self._detector is None:
            return _reduced(image, sizes)
        detection = self._detect(position, image) if box is None else Detection(box, 1.0)
        if isinstance(detection, str):
            return detection
        name = "yunet" if self._detector is None or box is not None else self._detector.name
        return {size: crop_face(image, detection, size, detector_name=name) for size in sizes}

    def _detect(self, position: int, image: np.ndarray) -> Detection | str:
        """The largest face; found once, because the page shows some of the images again."""
        if position not in self._found:
            assert self._detector is not None
            detections = self._detector.detect(image)
            if len(detections) > 1:
                self._several.add(position)
            self._found[position] = detections[0] if detections else NO_FACE
        return self._found[position]


def _reduced(image: np.ndarray, sizes: Sequence[int]) -> Crops:
    """The image itself, or what a predictor makes of it first where that saves much memory."""
    if max(image.shape[:2]) <= _LARGEST:
        return dict.fromkeys(sizes, image)
    return {size: to_square(image, size) for size in sizes}
