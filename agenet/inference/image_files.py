"""Predicts the faces in image files, reading ahead in a thread, and writes the results."""

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
from agenet.faces.image_io import FULL_SIZE_PIXELS, ImageFileError, read_image_reduced, write_image
from agenet.inference.inputs import common_folder
from agenet.inference.results import Result, Summary, Writer

CROPS_AT_ONCE = 32
READ_AHEAD = 2  # images

Annotate = Callable[[str, np.ndarray, Sequence[Face]], str]


class ImagePredictor(FacePredictor, Protocol):
    """Predicts the faces in images, and images that show one face each."""

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]: ...


def predict_files(
    found: Iterable[Result],
    predictor: ImagePredictor,
    writers: Sequence[Writer],
    cropped: bool = False,
    annotate: Annotate | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> Summary:
    """Predicts image files and writes the results, in order; Ctrl-C keeps those written so far.

    Args:
        found: the files, see `find_images`.
        predictor: predicts them.
        writers: write the results.
        cropped: each image is one face.
        annotate: writes an image with its faces drawn in; returns an error message or "".
        advance: called with the number of files processed.
    """
    summary = Summary()
    try:
        with closing(_read_ahead(found)) as files:
            for batch in _batches(files, CROPS_AT_ONCE if cropped else 1):
                images = [file.image for file in batch if file.image is not None]
                faces = iter(_predict(images, predictor, cropped))
                for file in batch:
                    faces_found = () if file.image is None else next(faces)
                    result = _to_result(file, faces_found, annotate)
                    for writer in writers:
                        writer.write(result)
                    summary.add(result)
                advance(len(batch))
    except (KeyboardInterrupt, BrokenPipeError) as end:
        summary.stopped = type(end)
    return summary


@dataclass(frozen=True)
class _ImageFile:
    """A file that was read: `image` is None if `result` has an error."""

    result: Result
    image: np.ndarray | None = None
    reduction: int = 1


def _read(found: Result) -> _ImageFile:
    if found.error:
        return _ImageFile(found)
    try:
        image, reduction = read_image_reduced(found.path)
    except ImageFileError as error:
        return _ImageFile(dataclasses.replace(found, error=error.reason))
    size = (image.shape[1] * reduction, image.shape[0] * reduction)
    return _ImageFile(dataclasses.replace(found, size=size), image, reduction)


def _read_ahead(found: Iterable[Result]) -> Generator[_ImageFile, None, None]:
    """Reads the next images in a thread while the network runs."""
    waiting: deque[Future[_ImageFile]] = deque()
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


def _batches(files: Iterable[_ImageFile], most: int) -> Iterator[list[_ImageFile]]:
    """Yields batches of up to `most` images, fewer if they are large."""
    batch: list[_ImageFile] = []
    pixels = 0
    for file in files:
        batch.append(file)
        pixels += file.image.shape[0] * file.image.shape[1] if file.image is not None else 0
        if len(batch) == most or pixels >= FULL_SIZE_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _predict(
    images: Sequence[np.ndarray], predictor: ImagePredictor, cropped: bool
) -> list[list[Face]]:
    """Returns the faces of each image."""
    if not cropped:
        return [predictor.predict_faces(image) for image in images]
    predictions = predictor.predict(images) if images else []
    boxes = [Box(0, 0, image.shape[1], image.shape[0]) for image in images]
    return [
        [Face(Detection(box, score=1.0), prediction)]
        for box, prediction in zip(boxes, predictions, strict=True)
    ]


def _to_result(file: _ImageFile, faces: Sequence[Face], annotate: Annotate | None) -> Result:
    if file.image is None:
        return file.result
    error = annotate(file.result.path, file.image, faces) if annotate else ""
    scaled = [_scaled(face, file.reduction) for face in faces]
    return dataclasses.replace(file.result, faces=scaled, error=error)


def _scaled(face: Face, times: int) -> Face:
    """Scales a face to the pixels of the file."""
    if times == 1:
        return face
    box = Box(*(times * side for side in face.detection.box))
    return dataclasses.replace(face, detection=dataclasses.replace(face.detection, box=box))


def annotator(paths: Sequence[str], folder: Path, overwrite: bool) -> Annotate:
    """Returns a function that writes copies of images with their faces drawn in.

    Args:
        paths: as given by the user; copies keep their names relative to the common folder.
        folder: where to write the copies.
        overwrite: replace existing copies.
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
