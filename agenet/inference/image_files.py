"""Predicts age and gender of the faces in image files, reading ahead, and writes the results."""

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from agenet.faces.drawing import draw_faces
from agenet.faces.face import Box, Detection, Face, FacePredictor, Prediction
from agenet.faces.image_io import (
    FULL_SIZE_PIXELS,
    ImageFileError,
    read_image_reduced,
    write_image,
)
from agenet.inference.inputs import common_folder
from agenet.inference.results import (
    Result,
    Summary,
    Writer,
)

CROPS_AT_ONCE = 32
READ_AHEAD = 2  # pictures

Annotate = Callable[[str, np.ndarray, Sequence[Face]], str]


class PicturePredictor(FacePredictor, Protocol):
    """Tells of faces in pictures, and of pictures that are faces."""

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]: ...


def predict_files(
    found: Iterable[Result],
    predictor: PicturePredictor,
    writers: Sequence[Writer],
    cropped: bool = False,
    annotate: Annotate | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> Summary:
    """Reads, predicts and writes, in order; Ctrl-C ends it early and keeps what is done.

    Args:
        found: the files, see `find_pictures`.
        cropped: each picture is one face.
        annotate: writes a picture with its faces drawn in; gives back why it did not, or "".
        advance: told how many files were done.
    """
    summary = Summary()
    try:
        with closing(_read_ahead(found)) as pictures:
            for batch in _batches(pictures, CROPS_AT_ONCE if cropped else 1):
                images = [picture.image for picture in batch if picture.image is not None]
                faces = iter(_predict(images, predictor, cropped))
                for picture in batch:
                    found_in_it = () if picture.image is None else next(faces)
                    result = _tell(picture, found_in_it, annotate)
                    for writer in writers:
                        writer.write(result)
                    summary.add(result)
                advance(len(batch))
    except (KeyboardInterrupt, BrokenPipeError) as end:
        summary.stopped = type(end)
    return summary


@dataclass(frozen=True)
class _Picture:
    """A file as read: `image` is None where `result` has an error."""

    result: Result
    image: np.ndarray | None = None
    reduction: int = 1


def _read(found: Result) -> _Picture:
    if found.error:
        return _Picture(found)
    try:
        image, reduction = read_image_reduced(found.path)
    except ImageFileError as error:
        return _Picture(dataclasses.replace(found, error=error.reason))
    size = (image.shape[1] * reduction, image.shape[0] * reduction)
    return _Picture(dataclasses.replace(found, size=size), image, reduction)


def _read_ahead(found: Iterable[Result]) -> Generator[_Picture, None, None]:
    """Reads the next pictures in a thread of its own while the network looks at the last."""
    waiting: deque[Future[_Picture]] = deque()
    pool = ThreadPoolExecutor(1)
    try:
        for item in found:
            waiting.append(pool.submit(_read, item))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(pictures: Iterable[_Picture], most: int) -> Iterator[list[_Picture]]:
    """Up to `most` pictures at a time, fewer where they are large."""
    batch: list[_Picture] = []
    pixels = 0
    for picture in pictures:
        batch.append(picture)
        pixels += (
            picture.image.shape[0] * picture.image.shape[1] if picture.image is not None else 0
        )
        if len(batch) == most or pixels >= FULL_SIZE_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _predict(
    images: Sequence[np.ndarray], predictor: PicturePredictor, cropped: bool
) -> list[list[Face]]:
    """The faces of each picture."""
    if not cropped:
        return [predictor.predict_faces(image) for image in images]
    predictions = predictor.predict(images) if images else []
    boxes = [Box(0, 0, image.shape[1], image.shape[0]) for image in images]
    return [
        [Face(Detection(box, score=1.0), prediction)]
        for box, prediction in zip(boxes, predictions, strict=True)
    ]


def _tell(picture: _Picture, faces: Sequence[Face], annotate: Annotate | None) -> Result:
    if picture.image is None:
        return picture.result
    error = annotate(picture.result.path, picture.image, faces) if annotate else ""
    enlarged = [_enlarged(face, picture.reduction) for face in faces]
    return dataclasses.replace(picture.result, faces=enlarged, error=error)


def _enlarged(face: Face, times: int) -> Face:
    """The face in the pixels of the file."""
    if times == 1:
        return face
    box = Box(*(times * side for side in face.detection.box))
    return dataclasses.replace(face, detection=dataclasses.replace(face.detection, box=box))


def annotator(paths: Sequence[str], folder: Path, overwrite: bool) -> Annotate:
    """Returns what writes copies of images with their faces drawn in.

    Args:
        paths: as the user named them; copies have the names that images have below the folder
            that holds them all.
        folder: of the copies.
        overwrite: replace copies that exist.
    """
    base = common_folder(paths)

    def annotate(path: str, image: np.ndarray, faces: Sequence[Face]) -> str:
        copy = folder / os.path.relpath(path, base)
        if copy.exists() and not overwrite:
            return "annotated copy not written: it exists; add --overwrite"
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_image(copy, draw_faces(image, faces))
        except ImageFileError as error:
            return f"annotated copy not written: {error.reason}"
        except OSError as error:
            return f"annotated copy not written: {error.strerror or error}"
        return ""

    return annotate
