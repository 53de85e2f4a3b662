"""Functions of the user's own as predictors, changes of images, and the faces that are cut."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from agenet.errors import UserError
from agenet.faces.crop import crop_face
from agenet.faces.face import Box, Detection
from agenet.faces.image_io import write_image
from agenet.inference.conditions import CONDITIONS
from agenet.inference.face_crops import NO_FACE, FaceFiles
from agenet.inference.plugin import Plugin, is_plugin

CODE = """
import numpy as np
broken = 3
def predict(images):
    return [float(i.mean()) for i in images], np.array([0.25] * len(images))
def none(images): return [None, 120][: len(images)], None
def nan(images): return [float("nan")] * len(images), None
def fewer(images): return [3], None
def table(images): return np.zeros((len(images), 2)), None
def words(images): return ["old"] * len(images), None
def percent(images): return None, [97] * len(images)
def ages(images): return [3] * len(images)
def fails(images): raise ValueError("no\\nGPU\\x1b")
"""
IMAGES = [np.full((8, 8, 3), 40, np.uint8), np.full((9, 7, 3), 50, np.uint8)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugins") / "mine.py"
    path.write_text(CODE)
    return path


def test_functions_of_a_file(file: Path) -> None:
    first, second = Plugin(f"{file}:predict").predict(IMAGES)
    assert first is not None and second is not None
    assert (first.age, second.age, first.gender, first.gender_probability) == (
        *(40, 50),
        *("female", 0.75),
    )
    nothing, old = Plugin(f"{file}:none").predict(IMAGES)
    assert nothing is None and old is not None and (old.age, old.gender) == (100, None)


def test_functions_of_a_module(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(file.parent)
    assert len(Plugin("mine:predict").predict(IMAGES)) == 2
    monkeypatch.delitem(sys.modules, "mine")


def test_what_a_plugin_is() -> None:
    assert all(map(is_plugin, ("a:b", "a.b:c", "/x/a b.py:c_1")))
    assert not any(map(is_plugin, ("default", "a:", ":a", "C:/x", "a:b c", "a:1")))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nan", "returned nan among its ages, for image 1 of a list of 2: they must be from 0 to"),
        ("fewer", "returned 1 ages for 2 images"),
        ("table", r"returned an array of shape \(2, 2\) as ages: return 2 numbers"),
        ("words", "returned a list of 2 as ages: return 2 numbers"),
        ("percent", "returned 97 among its probabilities of being male"),
        ("ages", r"must return a pair \(ages, probabilities of being male\), not a list of 2"),
        ("fails", r"raised ValueError: no \(mine.py, line 13\)"),
        ("predcit", "has no function predcit: did you mean predict"),
        ("broken", "has no function broken"),
    ],
)
def test_mistakes_of_a_plugin(file: Path, function: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Plugin(f"{file}:{function}").predict(IMAGES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "there is no module no_such_module: install it"),
        ("no_such_file.py:f", "no_such_file.py: no such file"),
        ("WRONG:f", r"importing it raised SyntaxError"),
        ("wrong", "is not MODULE:FUNCTION or FILE.py:FUNCTION"),
    ],
)
def test_plugins_that_cannot_be_imported(tmp_path: Path, name: str, message: str) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f(:\n")
    with pytest.raises(UserError, match=message):
        Plugin(name.replace("WRONG", str(wrong)))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_conditions_keep_images_valid(condition: str) -> None:
    image = np.full((60, 60, 3), 90, np.uint8)
    changed = CONDITIONS[condition](image)
    assert changed.dtype == np.uint8 and changed.ndim == 3 and changed.shape[2] == 3
    assert changed[len(changed) // 2, len(changed) // 2].tolist() == [90, 90, 90]


def test_faces_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    write_image(tmp_path / "a.png", image)
    (tmp_path / "b.png").write_bytes(b"no image")
    box = Box(30, 20, 70, 60)
    paths = [tmp_path / name for name in ("a.png", "a.png", "b.png", "c.png")]
    cut, whole, broken, missing = FaceFiles(paths, [box, None, None, box]).load(range(4), [32, 48])
    assert isinstance(cut, dict) and isinstance(whole, dict)
    expected = crop_face(image, Detection(box, 1.0), 48, detector_name="yunet")
    assert (cut[48] == expected).all() and cut[32].shape == (32, 32, 3)
    assert (whole[32] == image).all()
    assert isinstance(broken, str) and missing == "no such file or directory"
    # Large images are reduced at once.
    write_image(tmp_path / "c.png", cv2.resize(image, (1200, 900)))
    (large,) = FaceFiles(paths, detector=None).load([3], [32])
    assert isinstance(large, dict) and large[32].shape == (32, 32, 3)
    # A detector is asked where there is no box, and only once for each image.
    finder = FaceFiles(paths, [box, None, None, None], "yunet")
    assert finder._detector is not None
    searched: list[int] = []
    detection = Detection(box, 0.9)

    def detect(image: np.ndarray) -> list[Detection]:
        searched.append(1)
        return [detection, detection] if len(image) == 90 else []

    monkeypatch.setattr(finder._detector, "detect", detect)
    for _ in range(2):
        _, found, _, nobody = finder.load(range(4), [48])
        assert isinstance(found, dict) and (found[48] == expected).all() and nobody == NO_FACE
    assert len(searched) == 2 and finder.several == 1
