"""Predicts the faces in image files, while threads read the next, and writes the results."""

import dataclasses
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from agenet.distributed.cores import available_cores
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
from agenet.inference.engines import MAX_BATCH
from agenet.inference.inputs import common_folder
from agenet.inference.read_ahead import Hold, read_ahead
from agenet.inference.results import Result, Summary, Writer

# A decoder looks at the time whenever it reads; one that reads no more is left behind.
PATIENCE = 2 * MAX_SECONDS
# Images that are read, searched or wait for the network: as many as it takes meanwhile, and more.
AHEAD = 2 * MAX_BATCH
# Faces that are enough for a batch: on two cores batches of 8 to 32 are as fast as each other, and
# 32 take 100 MB more than 16.
FACES_AT_ONCE = 16
# Seconds that a face waits for others, so that the network runs on several at once.
_TOGETHER = 0.2

Annotate = Callable[[str, np.ndarray, Sequence[Face]], str]


class ReadImage(Protocol):
    """Reads an image by its path, see `read_image_file`."""

    def __call__(
        self,
        path: str,
        /,
        *,
        to_detect: bool = False,
        admit: Callable[[int], object] | None = None,
    ) -> FileImage: ...


class ImagePredictor(FacePredictor, Protocol):
    """Predicts the faces in images, and images that show one face each, in several threads."""

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]: ...

    def detect(self, image: np.ndarray) -> list[Detection]: ...

    def is_coarse(self, detection: Detection) -> bool: ...

    def crop(self, image: np.ndarray, detections: Sequence[Detection]) -> list[np.ndarray]: ...


def predict_files(
    found: Iterable[Result],
    predictor: ImagePredictor,
    writers: Sequence[Writer],
    cropped: bool = False,
    annotate: Annotate | None = None,
    advance: Callable[[int], object] = lambda count: None,
    select: FaceSelection = ALL_FACES,
    threads: int | None = None,
    read_image: ReadImage | None = None,
) -> Summary:
    """Predicts image files and writes the results, in order; Ctrl-C keeps those written so far.

    Threads read and search the next images, while the network predicts the faces of several images
    at once.

    Args:
        found: the files, see `ImageSearch`.
        predictor: predicts them.
        writers: write the results.
        cropped: each image is one face.
        annotate: writes an image with its faces drawn in; returns an error message or "".
        advance: called with the number of files processed.
        select: the faces to predict, of those that are found.
        threads: that read and search images; by default one for each core that may be used.
        read_image: reads them; by default `read_image_file`.
    """
    summary = Summary()
    read_image = read_image or read_image_file
    reader = _Reader(predictor, select, read_image, cropped, keep=annotate is not None)
    files = read_ahead(
        found,
        reader.read,
        _give_up,
        PATIENCE,
        threads=threads or available_cores(),
        ahead=AHEAD,
        room=FULL_SIZE_PIXELS,
        pause=_TOGETHER,
    )
    try:
        with closing(files), closing(_predict(files, predictor)) as predicted:
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
        reduction: see `FileImage`.
        pixels: of the image, RGB uint8 [H, W, 3]; None once they are not needed.
        detections: the faces to predict, in the pixels of the image.
        crops: these faces, each an image; None where they are so many that they are cut out when
            they are predicted.
    """

    result: Result
    reduction: int = 1
    pixels: np.ndarray | None = None
    detections: Sequence[Detection] = ()
    crops: Sequence[np.ndarray] | None = ()

    def count_pixels(self) -> int:
        """The number of pixels that it holds."""
        arrays = [*(self.crops or ()), *([] if self.pixels is None else [self.pixels])]
        return sum(array.size // 3 for array in arrays)


class _Reader:
    """Reads image files, and finds and cuts out their faces; in any number of threads.

    Args:
        predictor: finds and cuts out faces.
        select: of those that are found.
        read_image: reads a file.
        cropped: each image is one face.
        keep: keep the pixels of each image, all of those that it has.
    """

    def __init__(
        self,
        predictor: ImagePredictor,
        select: FaceSelection,
        read_image: ReadImage,
        cropped: bool,
        keep: bool,
    ) -> None:
        self._predictor, self._select, self._read_image = predictor, select, read_image
        self._cropped, self._keep = cropped, keep

    def read(self, found: Result, hold: Hold) -> _ImageFile:
        if found.error:
            return _ImageFile(found)
        try:
            file = self._read(found, hold)
        except ImageFileError as error:  # The file may be removed before it is read again.
            return _ImageFile(dataclasses.replace(found, error=error.reason))
        hold(file.count_pixels())
        return file

    def _read(self, found: Result, hold: Hold) -> _ImageFile:
        # Copies are drawn into the whole image, and crops must have all their pixels.
        to_detect = not self._keep and not self._cropped
        image = self._read_image(found.path, to_detect=to_detect, admit=hold)
        if self._cropped:
            height, width = image.pixels.shape[:2]
            detections = [Detection(Box(0, 0, width, height), score=1.0)]
            crops = [image.pixels]
        else:
            detections = self._select(self._predictor.detect(image.pixels), image.reduction)
            if image.to_detect and any(map(self._predictor.is_coarse, detections)):
                reduced = image.reduction
                del image  # Its memory is needed.
                image = self._read_image(found.path, admit=hold)
                detections = [d.scaled(reduced // image.reduction) for d in detections]
            crops = None
            if len(detections) <= MAX_BATCH:
                crops = self._predictor.crop(image.pixels, detections)
        keep = self._keep or crops is None
        return _ImageFile(
            dataclasses.replace(found, size=image.size),
            image.reduction,
            image.pixels if keep else None,
            detections,
            crops,
        )


def _give_up(found: Result) -> _ImageFile:
    return _ImageFile(dataclasses.replace(found, error=f"not read within {PATIENCE:g} seconds"))


def _predict(
    files: Iterable[_ImageFile | None], predictor: ImagePredictor
) -> Generator[_ImageFile, None, None]:
    """Predicts the faces of several files at once: of those that come within a short time.

    Args:
        files: None where there is none for a while.
        predictor: predicts them.
    """
    batch: list[_ImageFile] = []
    faces, pixels, began = 0, 0, 0.0
    for file in files:
        if file is not None:
            began = began if batch else time.monotonic()
            batch.append(file)
            faces += len(file.detections)
            pixels += file.count_pixels()
        if (
            file is None
            or not faces
            or faces >= FACES_AT_ONCE
            or pixels >= FULL_SIZE_PIXELS
            or time.monotonic() - began >= _TOGETHER
        ):
            yield from _predict_batch(batch, predictor)
            batch, faces, pixels = [], 0, 0
    yield from _predict_batch(batch, predictor)


def _predict_batch(batch: Sequence[_ImageFile], predictor: ImagePredictor) -> Iterator[_ImageFile]:
    crops = [crop for file in batch for crop in file.crops or ()]
    predictions = iter(predictor.predict(crops) if crops else [])
    for file in batch:
        if file.crops is None:
            assert file.pixels is not None
            faces = predictor.predict_faces(file.pixels, file.detections)
        else:
            faces = [Face(detection, next(predictions)) for detection in file.detections]
        yield dataclasses.replace(file, result=dataclasses.replace(file.result, faces=faces))


def _to_result(file: _ImageFile, annotate: Annotate | None) -> Result:
    result = file.result
    if result.error:
        return result
    error = ""
    if annotate and file.pixels is not None:
        error = annotate(result.path, file.pixels, result.faces)
    scaled = [
        dataclasses.replace(face, detection=face.detection.scaled(file.reduction))
        for face in result.faces
    ]
    return dataclasses.replace(result, faces=scaled, error=error)


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
