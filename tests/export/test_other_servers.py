"""The recipe for other servers, run as it stands in the document, without anything of agenet."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest

from agenet.cli.app import run_command
from agenet.faces.face import Box, Detection, Prediction
from agenet.faces.image_io import read_image
from agenet.faces.yunet import BUNDLED_FILE
from agenet.inference.postprocess import Postprocess
from agenet.inference.predictor import Predictor
from agenet.weights.bundled import DEFAULT_FILE
from agenet.weights.load import read_weights
from tests.conftest import ROOT

PAGE = (ROOT / "agenet" / "export" / "other_servers.md").read_text()
PHOTO = read_image(ROOT / ".github" / "images" / "astronaut.jpg")
PYTHON = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))

Recipe = dict[str, Callable[..., Any]]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    assert not re.search(r"^\s*(import|from) (?!cv2|numpy|onnxruntime)", PYTHON, re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(PYTHON, "other_servers.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    output = tmp_path_factory.mktemp("exported") / "model.onnx"
    run_command(["export", "default", str(output)])
    return onnxruntime.InferenceSession(output)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load(engine="onnxruntime", detector="yunet")


def row(face: Detection) -> np.ndarray:
    """A face as YuNet writes it."""
    assert face.landmarks is not None
    box = face.box
    numbers = [box.left, box.top, box.width, box.height, *face.landmarks.ravel(), face.score]
    return np.array(numbers)


def check(found: Sequence[dict[str, Any]], expected: Sequence[Prediction]) -> None:
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("age", "age_interval", "age_group", "gender"):
            assert ours[name] == getattr(theirs, name), name
        for name in ("age_probabilities", "gender_probability"):
            assert ours[name] == pytest.approx(getattr(theirs, name), abs=1e-3), name


@pytest.mark.parametrize("scale", [0.7, 1, 1.7, 4])
def test_whole_images(
    scale: float, recipe: Recipe, session: onnxruntime.InferenceSession, predictor: Predictor
) -> None:
    """The face shrinks in the crop, or grows, or shrinks by so much that it is reduced first."""
    photo = cv2.resize(PHOTO, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    for turned in (photo, np.ascontiguousarray(np.rot90(photo)[:, :: -1 if scale == 1 else 1])):
        faces = predictor.detect(turned)
        expected = [face.prediction for face in predictor.predict_faces(turned, faces)]
        if faces:
            check(recipe["predict"](turned, np.stack([*map(row, faces)]), session), expected)
    assert predictor.detect(photo)


def test_faces_at_the_edge_and_useless_landmarks(
    recipe: Recipe, session: onnxruntime.InferenceSession, predictor: Predictor
) -> None:
    (face, *_) = predictor.detect(PHOTO)
    assert face.landmarks is not None
    left, top, right, bottom = face.box
    beside = Box(left - 180, top - 70, right - 180, bottom - 70)
    faces = [
        Detection(beside, 1.0, face.landmarks - (180, 70)),
        Detection(face.box, 1.0, np.tile(face.landmarks.mean(0), (5, 1))),
        Detection(face.box, 1.0, face.landmarks + 300),
        Detection(Box(-500, -500, -400, -400), 1.0, np.zeros((5, 2))),
    ]
    expected = [face.prediction for face in predictor.predict_faces(PHOTO, faces)]
    check(recipe["predict"](PHOTO, np.stack([*map(row, faces)]), session), expected)


def test_its_own_detection(
    recipe: Recipe, session: onnxruntime.InferenceSession, predictor: Predictor
) -> None:
    """OpenCV's search alone, without any detection of agenet's."""
    faces = recipe["detect"](PHOTO, str(BUNDLED_FILE))
    (ours, *_) = recipe["predict"](PHOTO, faces, session)
    (theirs, *_) = predictor.predict_faces(PHOTO)
    check([ours], [theirs.prediction])


def test_images_of_one_face(
    recipe: Recipe, session: onnxruntime.InferenceSession, predictor: Predictor
) -> None:
    (face, *_) = predictor.detect(PHOTO)
    square = recipe["crop"](PHOTO, row(face))
    outputs = session.run(["years", "gender"], {"images": square[None]})
    check(list(map(recipe["read"], *outputs)), predictor.predict([square]))


def test_any_probabilities(recipe: Recipe) -> None:
    """Narrow and wide, with one peak and with several."""
    rng = np.random.default_rng(0)
    years = np.log(rng.dirichlet(np.full(101, 0.05), 200) + 1e-30).astype(np.float32)
    gender = np.log(rng.dirichlet([1, 1], 200)).astype(np.float32)
    groups = np.zeros((200, 8), np.float32)  # What the recipe does not read.
    postprocess = Postprocess(read_weights(DEFAULT_FILE).spec)
    expected = postprocess({"age": groups, "years": years, "gender": gender})
    check([recipe["read"](*rows) for rows in zip(years, gender, strict=True)], expected)


def test_tritons_configuration_is_of_this_file(session: onnxruntime.InferenceSession) -> None:
    (config,) = re.findall(r"^```protobuf\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    types = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}
    pattern = r'\{ name: "(\w+)" data_type: (\w+) dims: \[ ([\d, ]+) \] \}'
    found = {
        n: (kind, [*map(int, dims.split(","))]) for n, kind, dims in re.findall(pattern, config)
    }
    tensors = [*session.get_inputs(), *session.get_outputs()]
    assert found == {t.name: (types[t.type], t.shape[1:]) for t in tensors}
    # Triton batches files whose first dimension is open.
    assert all(isinstance(tensor.shape[0], str) for tensor in tensors)
    assert re.search(r"^max_batch_size: [1-9]", config, re.MULTILINE)
    assert "dynamic_batching {" in config and 'backend: "onnxruntime"' in config


def test_what_the_page_says_of_the_files() -> None:
    assert f"`{BUNDLED_FILE.relative_to(ROOT)}`" in PAGE
    spec = read_weights(DEFAULT_FILE).spec
    (mean,), (std,) = set(spec.input.mean), set(spec.input.std)
    assert f"central {spec.input.size} pixels, subtracts the mean {mean:g} " in PAGE
    assert f"the standard deviation {std:g}, " in PAGE
