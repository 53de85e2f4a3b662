import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from agenet.data.decoding import to_square
from agenet.errors import UserError
from agenet.faces.detectors import create_detector
from agenet.faces.face import Box, Detection
from agenet.inference import engines
from agenet.inference.engines import MAX_BATCH, JaxEngine, create_engine
from agenet.inference.network import load_network
from agenet.inference.predictor import Predictor
from agenet.labels import AGE_GROUPS, GENDERS
from agenet.weights.load import Weights, save_weights
from agenet.weights.spec import InputSpec, WeightsSpec
from tests.conftest import ROOT
from tests.random_weights import write_random_weights

SIZE, STORED = 32, 37


def weights_file(path: Path, **heads: str) -> Path:
    """A small network with random weights, and these heads."""
    images = InputSpec(SIZE, (127.0,) * 3, (128.0,) * 3, "bilinear", SIZE / STORED)
    return write_random_weights(path, "resnet18", "torchvision", heads, images)


@pytest.fixture(scope="module")
def by_year(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "by_year.safetensors"
    return weights_file(path, age="distribution", gender="softmax")


def random_images(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(20, 60, (count, 2)).tolist()
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in sizes]


def test_predictions_match_the_network(by_year: Path) -> None:
    predictor, images = Predictor.load(by_year, engine="jax"), random_images(3)
    log_probs = load_network(by_year).make_forward()(
        np.stack([to_square(i, STORED) for i in images])
    )
    for row, prediction in enumerate(predictor.predict(images)):
        years = np.exp(np.asarray(log_probs["years"][row], np.float64))
        assert prediction.age_group is not None and prediction.age_distribution is not None
        np.testing.assert_allclose(prediction.age_distribution, years / years.sum(), atol=1e-4)
        first, last = map(int, prediction.age_group.split("-"))
        median = int((years.cumsum() < years.sum() / 2).sum())
        assert prediction.age == min(max(median, first), last)
        assert (
            prediction.age_probabilities is not None and prediction.gender_probability is not None
        )
        assert list(prediction.age_probabilities) == list(AGE_GROUPS)
        groups = np.exp(log_probs["age"][row])
        np.testing.assert_allclose(list(prediction.age_probabilities.values()), groups, atol=1e-4)
        assert prediction.age_group == AGE_GROUPS[int(groups.argmax())]
        genders = np.exp(log_probs["gender"][row])
        assert prediction.gender == GENDERS[int(genders.argmax())]
        assert prediction.gender_probability == pytest.approx(genders.max(), abs=1e-4)
        fields = json.loads(json.dumps(prediction.asdict(distribution=True)))
        assert fields["gender"] == prediction.gender
        assert tuple(fields["age_interval"]) == prediction.age_interval
        assert len(fields["age_distribution"]) == 101
        assert "age_distribution" not in prediction.asdict()


def test_engines_agree(by_year: Path) -> None:
    images = random_images(5)
    by_jax, by_onnx = (
        Predictor.load(by_year, engine=name).predict(images) for name in ("jax", "onnxruntime")
    )
    for one, other in zip(by_jax, by_onnx, strict=True):
        assert one.gender_probability == pytest.approx(other.gender_probability, abs=1e-4)
        assert one.age == pytest.approx(other.age, abs=0.01)


def test_graph_is_cached_and_rebuilt_when_damaged(
    by_year: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AGENET_CACHE", str(tmp_path))
    image = random_images(1)
    expected = Predictor.load(by_year, engine="onnxruntime").predict(image)
    (kept,) = (tmp_path / "graphs").glob("*.onnx")
    written = kept.stat().st_ino
    # The second start does without JAX.
    code = "import sys; from agenet import Predictor; Predictor.load(sys.argv[1]); "
    code += "assert not {'jax', 'flax', 'onnx'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code, str(by_year)], cwd=ROOT, check=True)
    assert kept.stat().st_ino == written
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    assert Predictor.load(by_year, engine="onnxruntime").predict(image) == expected
    assert "is damaged: exporting the network again" in caplog.text
    for number in range(30):
        (kept.parent / f"{number}.onnx").write_bytes(b"")
    kept.unlink()
    Predictor.load(by_year, engine="onnxruntime")
    assert len(list(kept.parent.glob("*.onnx"))) == engines._MAX_CACHED_GRAPHS and kept.exists()


@pytest.mark.parametrize("engine", ["jax", "onnxruntime"])
def test_any_number_of_faces(by_year: Path, engine: str) -> None:
    predictor, images = Predictor.load(by_year, engine=engine), random_images(2 * MAX_BATCH + 3)
    together = predictor.predict(images)
    assert len(together) == len(images) and predictor.predict([]) == []
    for row in (0, MAX_BATCH, 2 * MAX_BATCH + 2):
        (alone,) = predictor.predict([images[row]])
        assert alone.age == together[row].age


def test_few_batch_sizes_are_compiled(by_year: Path) -> None:
    engine = create_engine(by_year, "jax")
    assert isinstance(engine, JaxEngine)
    sizes = set()

    def forward(images: np.ndarray) -> dict[str, np.ndarray]:
        sizes.add(len(images))
        return {"age": np.zeros((len(images), 8), np.float32)}

    engine._forward = forward
    for count in range(1, MAX_BATCH + 1):
        assert len(engine(np.zeros((count, STORED, STORED, 3), np.uint8))["age"]) == count
    assert sizes == {1, 2, 4, 8, 16, 32}


def test_custom_age_groups(by_year: Path) -> None:
    groups = ["0-17", "18-64", "65-100"]
    (prediction,) = Predictor.load(by_year, age_groups=groups).predict(random_images(1))
    years = np.exp(
        np.asarray(
            load_network(by_year).make_forward()(to_square(random_images(1)[0], STORED)[None])[
                "years"
            ][0]
        )
    )
    expected = [years[:18].sum(), years[18:65].sum(), years[65:].sum()]
    assert prediction.age_probabilities is not None and list(prediction.age_probabilities) == groups
    np.testing.assert_allclose(list(prediction.age_probabilities.values()), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["young"], 'age group "young" must be like 18-64'),
        (["0-17", "17-20"], "must not overlap"),
        (["20-10"], "must increase"),
        (["0-17", "18-120"], "end by 100"),
    ],
)
def test_invalid_age_groups(by_year: Path, groups: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Predictor.load(by_year, age_groups=groups)


def test_other_heads(tmp_path: Path) -> None:
    path = weights_file(tmp_path / "groups.safetensors", age="groups")
    predictor = Predictor.load(path)
    (prediction,) = predictor.predict(random_images(1))
    assert prediction.age_group in AGE_GROUPS and prediction.age is None
    assert prediction.age_interval is None
    assert prediction.gender is None and prediction.gender_probability is None
    with pytest.raises(UserError, match="predicts its own age groups only"):
        Predictor.load(path, age_groups=["0-17", "18-100"])
    path = weights_file(tmp_path / "sigmoid.safetensors", age="ordinal", gender="sigmoid")
    (prediction,) = Predictor.load(path).predict(random_images(1))
    assert prediction.age is not None and 0 <= prediction.age <= 100
    assert prediction.gender_probability is not None and prediction.gender_probability >= 0.5


def test_predict_faces(by_year: Path, real_data: Path) -> None:
    yunet = create_detector(str(real_data / "models/face_detection_yunet_2023mar.onnx"))
    image = cv2.imread(str(real_data / "media/astronaut.png"), cv2.IMREAD_COLOR)[..., ::-1]
    predictor = Predictor.load(by_year, detector=yunet)
    (face,) = predictor.predict_faces(image)
    assert face.detection.box.left == pytest.approx(179, abs=10)
    assert list(face.asdict())[:3] == ["box", "score", "age"]
    # Given detections are predicted in their order, however many, wherever they are.
    outside = Detection(Box(-900, -900, -800, -800), 0.5)
    given = [face.detection, outside] * 40
    found = predictor.predict_faces(image, given)
    assert [f.detection for f in found] == given
    assert found[0].prediction.age == pytest.approx(face.prediction.age, abs=0.01)
    assert predictor.predict_faces(np.zeros((50, 50, 3), np.uint8)) == []


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        np.zeros((0, 5, 3), np.uint8),
        "picture.jpg",
    ],
)
def test_invalid_images(by_year: Path, image: np.ndarray) -> None:
    predictor = Predictor.load(by_year)
    for predict in (lambda: predictor.predict([image]), lambda: predictor.predict_faces(image)):
        with pytest.raises(ValueError, match="RGB uint8"):
            predict()


def test_unusable_weights(tmp_path: Path, by_year: Path) -> None:
    with pytest.raises(UserError, match=r'there are no weights "defualt".*did you mean default'):
        Predictor.load("defualt")
    (tmp_path / "x.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(UserError, match="not a weights file"):
        Predictor.load(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="holds no checkpoints"):
        Predictor.load(tmp_path)
    weights = load_network(by_year).weights
    spec = WeightsSpec(**vars(weights.spec) | {"heads": {}})
    save_weights(tmp_path / "other.safetensors", Weights(weights.tensors, spec))
    with pytest.raises(
        UserError, match="weights of resnet18 that predict age, gender: for age and"
    ):
        Predictor.load(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match='engine "onnx" is not known'):
        Predictor.load(by_year, engine="onnx")


class FakeDetector:
    name = "yunet"

    def detect(self, image: np.ndarray) -> list[Detection]:
        return [Detection(Box(10, 10, 40, 40), 0.9)]


def test_detector_objects_names_and_files(by_year: Path, real_data: Path) -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    assert len(Predictor.load(by_year, detector=FakeDetector()).predict_faces(image)) == 1
    file = real_data / "models" / "face_detection_yunet_2023mar.onnx"
    for detector in (file, str(file)):
        assert Predictor.load(by_year, detector=detector).predict_faces(image) == []
    engine = create_engine(by_year)
    assert Predictor(engine, detector=file).predict_faces(image) == []
    pytest.importorskip("dlib")
    assert Predictor(engine, detector="hog").predict_faces(image) == []


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        ("hgo", r'face detector "hgo" is not one of auto, yunet, hog, .*; did you mean hog\?'),
        (3, r"a face detector must be auto, yunet, hog, .* a method detect\(image\), not '3'"),
        (np.zeros(3), "a face detector must be auto, yunet, hog"),
    ],
)
def test_no_such_detector(by_year: Path, detector: Any, message: str) -> None:
    engine = create_engine(by_year)
    for load in (Predictor.load, lambda _, detector: Predictor(engine, detector=detector)):
        with pytest.raises(UserError, match=message) as caught:
            load(by_year, detector=detector)
        assert "\n" not in str(caught.value)
    other = FakeDetector()
    other.name = "mine"
    with pytest.raises(UserError, match=r'"mine": crops are known only for .* yunet and hog'):
        Predictor(engine, detector=other)


def test_prediction_writes_nothing_below_the_home_folder(by_year: Path, tmp_path: Path) -> None:
    # ONNX Runtime's telemetry would leave an identifier of the device there.
    home = tmp_path / "home"
    home.mkdir()
    code = "import sys, numpy as np; from agenet import Predictor; "
    code += "Predictor.load(sys.argv[1]).predict([np.zeros((32, 32, 3), np.uint8)])"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(home), "AGENET_CACHE": str(tmp_path / "cache")}
    environment = {k: v for k, v in environment.items() if not k.startswith("XDG_")}
    subprocess.run(
        [sys.executable, "-c", code, str(by_year)], cwd=ROOT, check=True, env=environment
    )
    assert not list(home.iterdir())
