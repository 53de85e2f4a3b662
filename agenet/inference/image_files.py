"""Predicts the faces in image files, while threads read the next, and writes the results."""

import dataclasses
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from agenet.faces.drawing import draw_faces
from agenet.faces.face import Box, Detection, Face, FacePredictor, Prediction
from agenet.faces.image_io import (
    FULL_SIZE_PIXELS,
    MAX_SECONDS,
    FileImage,
    ImageFileError,
    name_to_write,
    read_image_file,
    write_image,
)
from agenet.faces.selection import ALL_FACES, FaceSelection
from agenet.inference.inputs import common_folder
from agenet.inference.read_ahead import read_ahead
from agenet.inference.results import Result, Summary, Writer

CROPS_AT_ONCE = 32
# A decoder looks at the time whenever it reads; one that reads no more is left behind.
PATIENCE = 2 * MAX_SECONDS

Annotate = Callable[[str, np.ndarray, Sequence[Face]], str]


class ImagePredictor(FacePredictor, Protocol):
    """Predicts the faces in images, and images that show one face each."""

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]: ...

    def detect(self, image: np.ndarray) -> list[Detection]: ...

    def is_coarse(self, detection: Detection) -> bool: ...


def predict_files(
    found: Iterable[Result],
    predictor: ImagePredictor,
    writers: Sequence[Writer],
    cropped: bool = False,
    annotate: Annotate | None = None,
    advance: Callable[[int], object] = lambda count: None,
    select: FaceSelection = ALL_FACES,
) -> Summary:
    """Predicts image files and writes the results, in order; Ctrl-C keeps those written so far.

    Args:
        found: the files, see `ImageSearch`.
        predictor: predicts them.
        writers: write the results.
        cropped: each image is one face.
        annotate: writes an image with its faces drawn in; returns an error message or "".
        advance: called with the number of files processed.
        select: the faces to predict, of those that are found.
    """
    summary = Summary()
    # Copies are drawn into the whole image, and crops must have all their pixels.
    read = partial(_read, to_detect=annotate is None and not cropped)
    try:
        with closing(read_ahead(found, read, _give_up, PATIENCE)) as files:
            predict = _predict_crops if cropped else partial(_predict_photos, select=select)
            with closing(predict(files, predictor)) as predicted:
                for file in predicted:
                    result = _to_result(file, annotate)
                    for writer in writers:
                        writer.write(result)
                    summary.add(result)
                    advance(1)
    except (KeyboardInterrupt, BrokenPipeError) as end:
        summary.stopped = type(end)
    return summary


@dataclass(frozen=True)
class _ImageFile:
    """A file that was read.

    Attributes:
        result: what is known of it; its faces are in the pixels of `image`.
        image: None if `result` has an error.
        detections: the faces to predict, in the pixels of `image`.
        is_coarse: whether the whole image must be read to predict them.
    """

    result: Result
    image: FileImage | None = None
    detections: Sequence[Detection] = ()
    is_coarse: bool = False


def _read(found: Result, *, to_detect: bool) -> _ImageFile:
    if found.error:
        return _ImageFile(found)
    try:
        image = read_image_file(found.path, to_detect=to_detect)
    except ImageFileError as error:
        return _ImageFile(dataclasses.replace(found, error=error.reason))
    return _ImageFile(dataclasses.replace(found, size=image.size), image)


def _give_up(found: Result) -> _ImageFile:
    return _ImageFile(dataclasses.replace(found, error=f"not read within {PATIENCE:g} seconds"))


def _predict_photos(
    files: Iterable[_ImageFile], predictor: ImagePredictor, select: FaceSelection
) -> Generator[_ImageFile, None, None]:
    """Finds and predicts the faces in images.

    A second thread reads the whole images where they are needed, while the next are searched.
    """
    detected = (_detect(file, predictor, select) for file in files)
    with closing(read_ahead(detected, _read_whole, _give_up_whole, PATIENCE)) as whole:
        for file in whole:
            if file.image:
                faces = predictor.predict_faces(file.image.pixels, file.detections)
                file = _ImageFile(dataclasses.replace(file.result, faces=faces), file.image)
            yield file


def _detect(file: _ImageFile, predictor: ImagePredictor, select: FaceSelection) -> _ImageFile:
    if file.image is None:
        return file
    found = select(predictor.detect(file.image.pixels), file.image.reduction)
    is_coarse = file.image.to_detect and any(map(predictor.is_coarse, found))
    return dataclasses.replace(file, detections=found, is_coarse=is_coarse)


def _read_whole(file: _ImageFile) -> _ImageFile:
    if not file.is_coarse or file.image is None:
        return file
    whole = _read(Result(file.result.path), to_detect=False)
    if whole.image is None:  # It was removed in the meantime.
        return whole
    times = file.image.reduction // whole.image.reduction
    return dataclasses.replace(whole, detections=[d.scaled(times) for d in file.detections])


def _give_up_whole(file: _ImageFile) -> _ImageFile:
    return _give_up(Result(file.result.path))


def _predict_crops(
    files: Iterable[_ImageFile], predictor: ImagePredictor
) -> Generator[_ImageFile, None, None]:
    """Predicts images that show one face each."""
    for batch in _batches(files):
        images = [file.image.pixels for file in batch if file.image]
        predictions = iter(predictor.predict(images) if images else [])
        for file in batch:
            if file.image:
                height, width = file.image.pixels.shape[:2]
                face = Face(Detection(Box(0, 0, width, height), score=1.0), next(predictions))
                file = _ImageFile(dataclasses.replace(file.result, faces=[face]), file.image)
            yield file


def _batches(files: Iterable[_ImageFile]) -> Iterator[list[_ImageFile]]:
    """Yields batches of up to `CROPS_AT_ONCE` images, fewer if they are large."""
    batch: list[_ImageFile] = []
    pixels = 0
    for file in files:
        batch.append(file)
        pixels += file.image.pixels.size // 3 if file.image else 0
        if len(batch) == CROPS_AT_ONCE or pixels >= FULL_SIZE_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _to_result(file: _ImageFile, annotate: Annotate | None) -> Result:
    if file.image is None:
        return file.result
    faces = file.result.faces
    error = annotate(file.result.path, file.image.pixels, faces) if annotate else ""
    scaled = [
        dataclasses.replace(face, detection=face.detection.scaled(file.image.reduction))
        for face in faces
    ]
    return dataclasses.replace(file.result, faces=scaled, error=error)


class Annotator:
    """Writes copies of images with their faces drawn in.

    Args:
        paths: as given by the user; copies keep their names relative to the common folder.
        folder: where to write the copies.
        overwrite: replace existing copies.

    Attributes:
        failed: number of copies that could not be written.
    """

    def __init__(self, paths: Sequence[str], folder: Path, overwrite: bool) -> None:
        self._base = common_folder(paths)
        self._folder, self._overwrite = folder, overwrite
        self.failed = 0

    def __call__(self, path: str, image: np.ndarray, faces: Sequence[Face]) -> str:
        """Writes the copy of an image; returns an error message or ""."""
        copy = name_to_write(self._folder / os.path.relpath(path, self._base))
        if copy.exists() and not self._overwrite:
            return "annotated copy not written: it exists; add --overwrite"
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_image(copy, draw_faces(image, faces))
        except (ImageFileError, OSError) as error:
            self.failed += 1
            reason = error.reason if isinstance(error, ImageFileError) else error.strerror or error
            return f"annotated copy not written: {reason}"
        return ""
