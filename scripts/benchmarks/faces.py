"""Images of faces, and video frames composed of them, for predict.py."""

import contextlib
import itertools
import tarfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from agenet.errors import UserError
from agenet.faces.detectors import create_detector
from agenet.faces.image_io import FORMATS, ImageFileError, read_image

WIDTH, HEIGHT = 640, 480
LOOP = 8  # frames
LARGE = 80  # pixels, the smallest face that dlib's detector finds


def draw_images(count: int) -> list[np.ndarray]:
    """Draws faces of invented people, 224 px like FairFace's."""
    from data_prep.drawn_faces.draw import draw_face
    from data_prep.drawn_faces.person import create_person, create_view

    images = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        person = create_person(int(rng.integers(8)), int(rng.integers(2)), rng)
        images.append(draw_face(person, create_view(rng), 224))
    return images


def read_images(path: Path, count: int) -> list[np.ndarray]:
    """Reads the first images of a folder or a tar, repeated until there are `count`."""
    images = []
    if path.is_dir():
        files = (file for file in sorted(path.rglob("*")) if file.suffix.lower() in FORMATS)
        images = [read_image(file) for file in itertools.islice(files, count)]
    else:
        with tarfile.open(path) as tar:
            for member in tar:
                suffix = Path(member.name).suffix.lower()
                if suffix in FORMATS and (file := tar.extractfile(member)):
                    coded = np.frombuffer(file.read(), np.uint8)
                    images.append(cv2.cvtColor(cv2.imdecode(coded, 1), cv2.COLOR_BGR2RGB))
                if len(images) == count:
                    break
    if not images:
        raise UserError(f"--images: {path} holds no images")
    return list(itertools.islice(itertools.cycle(images), count))


def media_faces(folder: Path, detector: str) -> list[np.ndarray]:
    """Crops the face of each image in a folder, with its surroundings, if it is large enough."""
    finder, faces = create_detector(detector), []
    for path in sorted(folder.iterdir()):
        try:
            image = read_image(path) if path.suffix.lower() in FORMATS else None
        except ImageFileError:
            continue
        found = [] if image is None else finder.detect(image)
        if image is None or not found or found[0].box.width < LARGE:
            continue
        (x, y), half = found[0].box.center, 0.9 * found[0].box.height
        left, top = max(round(x - half), 0), max(round(y - half), 0)
        faces.append(image[top : round(y + half), left : round(x + half)])
    if not faces:
        raise UserError(f"--media: no image in {folder} shows a face of {LARGE} pixels")
    return faces


def found_faces(images: Sequence[np.ndarray], detector: str, count: int) -> list[np.ndarray]:
    """Selects faces that both detectors find when `count` of them are in a frame."""
    finders = [create_detector(detector)]
    with contextlib.suppress(UserError):
        finders.append(create_detector("hog"))
    faces = []
    for image in images:
        frames = compose_frames([image], count)
        if all(len(finder.detect(frame)) == count for finder in finders for frame in frames):
            faces.append(image)
        if len(faces) == count:
            break
    if not faces:
        raise UserError("the detectors find none of the faces: give some by --media=FOLDER")
    return faces


def compose_frames(faces: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Frames uint8 [480, 640, 3] in which one or four faces move slightly."""
    rows = columns = round(count**0.5)
    cell_width, cell_height = WIDTH // columns, HEIGHT // rows
    side = round(0.8 * cell_height)
    frames = []
    for number in range(LOOP):
        angle = 2 * np.pi * number / LOOP
        frame = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
        for index in range(count):
            face = faces[index % len(faces)]
            scale = side / max(face.shape[:2])
            size = (round(face.shape[1] * scale), round(face.shape[0] * scale))
            face = cv2.resize(face, size, interpolation=cv2.INTER_AREA)
            left = index % columns * cell_width + (cell_width - size[0]) // 2
            top = index // columns * cell_height + (cell_height - size[1]) // 2
            left, top = left + round(8 * np.cos(angle)), top + round(8 * np.sin(angle))
            frame[top : top + size[1], left : left + size[0]] = face
        frames.append(frame)
    return frames
