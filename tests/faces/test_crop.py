import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from agenet.faces.crop import GEOMETRIES, Square, crop_face, crop_square, face_square
from agenet.faces.detectors import create_detector
from agenet.faces.face import Box, Detection

LANDMARKS = GEOMETRIES["yunet"].landmarks


def detection(x: float, y: float, side: float, degrees: float = 0.0) -> Detection:
    """A face whose training image is the square about (x, y), turned clockwise."""
    turn = np.exp(1j * np.radians(degrees))
    points = (x + 1j * y) + side * turn * ((LANDMARKS - 0.5) @ (1, 1j))
    geometry = GEOMETRIES["yunet"]
    height = side / geometry.size_ratio
    top = y - (0.5 + geometry.shift_down) * height
    box = Box(x - height / 2, top, x + height / 2, top + height)
    return Detection(box, 0.9, np.column_stack([points.real, points.imag]))


@pytest.mark.parametrize("degrees", [0, 25, -70, 180])
@pytest.mark.parametrize("side", [35.0, 146.0, 411.3, 1900.0])
def test_landmarks_are_aligned_with_the_mean_landmarks(side: float, degrees: float) -> None:
    size = 146
    face = detection(1003.3, 990.2, side, degrees)
    y, x = np.mgrid[:2000, :2000] + 0.5
    for point, expected in zip(face.landmarks, LANDMARKS * size, strict=True):
        width = max(side / 60, 1.0)
        dot = 250 * np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * width**2))
        image = np.repeat(dot[..., None].astype(np.uint8), 3, axis=2)
        crop = crop_face(image, face, size, detector_name="yunet")[..., 0].astype(float)
        rows, columns = np.mgrid[:size, :size] + 0.5
        found = (columns * crop).sum() / crop.sum(), (rows * crop).sum() / crop.sum()
        assert found == pytest.approx(tuple(expected), abs=0.5)


def test_crop_of_the_whole_image_is_the_image(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (224, 224, 3), np.uint8)
    np.testing.assert_array_equal(crop_square(image, Square(112, 112, 224), 224), image)
    turned = crop_square(image, Square(112, 112, 224, np.pi / 2), 224)
    np.testing.assert_array_equal(turned, np.rot90(image))  # counter-clockwise: upright again


@pytest.mark.parametrize("side", [300.0, 600.0, 2000.0])
@pytest.mark.parametrize("degrees", [0, 20])
def test_downscaling_does_not_alias(side: float, degrees: float) -> None:
    board = (np.indices((3000, 3000)).sum(0) % 2 * 255).astype(np.uint8)
    image = np.repeat(board[..., None], 3, axis=2)
    crop = crop_square(image, Square(1500, 1500, side, np.radians(degrees)), 146)
    assert crop.mean() == pytest.approx(127.5, abs=2)
    assert crop.std() < 6  # 42 with interpolation alone


def test_downscaling_does_not_shift(rng: np.random.Generator) -> None:
    image = cv2.resize(rng.integers(0, 256, (20, 20, 3), np.uint8), (999, 999))
    crop = crop_square(image, Square(499.5, 499.5, 999), 146)
    expected = cv2.resize(image, (146, 146), interpolation=cv2.INTER_AREA)
    assert np.abs(crop.astype(int) - expected).mean() < 1.5


@pytest.mark.parametrize("side", [60.0, 600.0])
def test_pixels_outside_the_image_are_black(side: float) -> None:
    image = np.full((1000, 1000, 3), 200, np.uint8)
    crop = crop_square(image, Square(0, 500, side), 100)
    assert (crop[:, :49] == 0).all() and (crop[:, 51:] == 200).all()
    assert (crop_square(image, Square(-side, 500, side), 100) == 0).all()


@pytest.mark.parametrize(
    "box",
    [
        Box(-1e12, -1e12, 1e12, 1e12),
        Box(-1e300, -1e300, 1e300, 1e300),
        Box(1e9, 1e9, 1e9 + 50, 1e9 + 50),
        Box(10.0, 10.0, 10.0 + 1e-9, 10.0 + 1e-9),
        Box(10.0, -1e6, 10.5, 1e6),
    ],
)
def test_extreme_boxes(box: Box) -> None:
    image = np.full((40_000, 30, 3), 7, np.uint8)
    for name in GEOMETRIES:
        crop = crop_face(image, Detection(box, 1.0), 64, detector_name=name)
        assert crop.shape == (64, 64, 3)


@pytest.mark.parametrize(
    "box", [Box(0, 0, np.nan, 5), Box(0, 0, np.inf, 5), Box(5, 5, 5, 9), Box(5, 5, 1, 9)]
)
def test_invalid_boxes(box: Box) -> None:
    with pytest.raises(ValueError, match="is not a box"):
        face_square(Detection(box, 1.0), "hog")


def test_unknown_detector() -> None:
    with pytest.raises(ValueError, match="'mine' were not measured, only those of yunet, hog"):
        face_square(Detection(Box(0, 0, 9, 9), 1.0), "mine")


def test_unusable_landmarks_are_ignored() -> None:
    face = detection(100, 100, 80, 30)
    upright = face_square(face, "yunet", align=False)
    assert upright == Square(pytest.approx(100), pytest.approx(100), pytest.approx(80))
    assert face_square(face, "yunet").angle == pytest.approx(np.radians(30))
    one_eyed = face.landmarks.copy()
    one_eyed[1] = one_eyed[0] + 1e-3
    for points in (
        np.full((5, 2), 90.0),
        np.full((5, 2), np.nan),
        np.full((5, 2), np.inf),
        face.landmarks * 1e9,
        face.landmarks + 200,
        one_eyed,
        None,
    ):
        assert face_square(Detection(face.box, 0.9, points), "yunet") == upright


def test_crops_match_fairface_images(real_data: Path, tmp_path: Path) -> None:
    """FairFace images inside of larger ones: the crops are nearly the images themselves."""
    detector = create_detector("yunet")
    moved = []
    with tarfile.open(real_data / "fairface" / "fairface_val.tar") as archive:
        for _ in range(40):
            member = archive.next()
            file = archive.extractfile(member) if member and member.isfile() else None
            if file is None:
                continue
            image = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR_RGB)
            image = cv2.copyMakeBorder(image, *[112] * 4, cv2.BORDER_CONSTANT, value=(99,) * 3)
            for face in detector.detect(image)[:1]:
                square = face_square(face, "yunet")
                moved.append(abs(square.x - 224) + abs(square.y - 224) + abs(square.side - 224))
    assert len(moved) > 30
    assert np.median(moved) / 224 < 0.15


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
