import json
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from agenet.data.square import to_square
from agenet.errors import UserError
from agenet.faces.detectors import find_detector
from agenet.faces.face import Box, Detection
from agenet.inference import engines
from agenet.inference.engines import MAX_BATCH, create_engine
from agenet.inference.network import load_served
from agenet.inference.predictor import Predictor
from agenet.labels import AGE_GROUPS, GENDERS
from agenet.models import create_model
from agenet.training.losses import describe_heads
from agenet.training.state import create_variables
from agenet.weights.load import Weights, save_weights
from agenet.weights.spec import InputSpec, WeightsSpec
from tests.conftest import ROOT
from tests.random_variables import random_variables

SIZE, STORED = 32, 37


def weights_file(path: Path, **heads: str) -> Path:
    """A small network with random weights, and these heads."""
    classes, ordinal = describe_heads(heads)
    spec = WeightsSpec(
        model="resnet18",
        flavour="torchvision",
        classes=classes,
        input=InputSpec(SIZE, (127.0,) * 3, (128.0,) * 3, "bilinear", SIZE / STORED),
        source="agenet",
        origin="a test",
        sha256=None,
        licence="none",
        heads=heads,
    )
    model = create_model(spec.model, classes, ordinal=ordinal)
    shapes = jax.eval_shape(lambda: create_variables(model, SIZE, 0))
    tensors = flatten_dict(random_variables(shapes), sep="/")
    save_weights(path, Weights(tensors, spec))
    return path


@pytest.fixture(scope="module")
def by_year(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "by_year.safetensors"
    return weights_file(path, age="distribution", gender="softmax")


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(20, 60, (count, 2)).tolist()
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in sizes]


def test_answers_are_those_of_the_network(by_year: Path) -> None:
    predictor, images = Predictor.load(by_year, engine="jax"), pictures(3)
    log_probs = load_served(by_year).answer()(np.stack([to_square(i, STORED) for i in images]))
    for row, told in enumerate(predictor.predict(images)):
        years = np.exp(np.asarray(log_probs["years"][row], np.float64))
        assert told.age == pytest.approx(years @ np.arange(101), abs=0.01)
        assert told.age_probabilities is not None and told.gender_probability is not None
        assert list(told.age_probabilities) == list(AGE_GROUPS)
        groups = np.exp(log_probs["age"][row])
        np.testing.assert_allclose(list(told.age_probabilities.values()), groups, atol=1e-4)
        assert told.age_group == AGE_GROUPS[int(groups.argmax())]
        genders = np.exp(log_probs["gender"][row])
        assert told.gender == GENDERS[int(genders.argmax())]
        assert told.gender_probability == pytest.approx(genders.max(), abs=1e-4)
        assert json.loads(json.dumps(told.asdict()))["gender"] == told.gender


def test_engines_agree(by_year: Path) -> None:
    images = pictures(5)
    told = [Predictor.load(by_year, engine=name).predict(images) for name in ("jax", "onnxruntime")]
    for one, other in zip(*told, strict=True):
        assert one.gender_probability == pytest.approx(other.gender_probability, abs=1e-4)
        assert one.age == pytest.approx(other.age, abs=0.01)


def test_a_graph_is_made_once_and_again_when_damaged(
    by_year: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AGENET_CACHE", str(tmp_path))
    image = pictures(1)
    expected = Predictor.load(by_year, engine="onnxruntime").predict(image)
    (kept,) = (tmp_path / "graphs").glob("*.onnx")
    written = kept.stat().st_ino
    # JAX is not asked for again.
    code = "import sys; from agenet import Predictor; Predictor.load(sys.argv[1]); "
    code += "assert not {'jax', 'flax', 'onnx'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code, str(by_year)], cwd=ROOT, check=True)
    assert kept.stat().st_ino == written
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    assert Predictor.load(by_year, engine="onnxruntime").predict(image) == expected
    assert "is damaged: made again" in caplog.text
    for number in range(30):
        (kept.parent / f"{number}.onnx").write_bytes(b"")
    kept.unlink()
    Predictor.load(by_year, engine="onnxruntime")
    assert len(list(kept.parent.glob("*.onnx"))) == engines._KEPT_GRAPHS and kept.exists()


@pytest.mark.parametrize("engine", ["jax", "onnxruntime"])
def test_any_number_of_faces(by_year: Path, engine: str) -> None:
    predictor, images = Predictor.load(by_year, engine=engine), pictures(2 * MAX_BATCH + 3)
    together = predictor.predict(images)
    assert len(together) == len(images) and predictor.predict([]) == []
    for row in (0, MAX_BATCH, 2 * MAX_BATCH + 2):
        (alone,) = predictor.predict([images[row]])
        assert alone.age == pytest.approx(together[row].age, abs=0.01)


def test_few_sizes_are_compiled(by_year: Path) -> None:
    engine = create_engine(by_year, "jax")
    for count in range(1, MAX_BATCH + 1):
        engine(np.zeros((count, STORED, STORED, 3), np.uint8))
    assert engine._answer._cache_size() == 6  # type: ignore[attr-defined]


def test_any_grouping(by_year: Path) -> None:
    groups = ["0-17", "18-64", "65-100"]
    (told,) = Predictor.load(by_year, age_groups=groups).predict(pictures(1))
    years = np.exp(
        np.asarray(
            load_served(by_year).answer()(to_square(pictures(1)[0], STORED)[None])["years"][0]
        )
    )
    expected = [years[:18].sum(), years[18:65].sum(), years[65:].sum()]
    assert told.age_probabilities is not None and list(told.age_probabilities) == groups
    np.testing.assert_allclose(list(told.age_probabilities.values()), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["young"], 'age group "young" must be like 18-64'),
        (["0-17", "17-20"], "must not overlap"),
        (["20-10"], "must increase"),
        (["0-17", "18-120"], "end by 100"),
    ],
)
def test_groups_that_make_no_sense(by_year: Path, groups: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Predictor.load(by_year, age_groups=groups)


def test_heads_of_other_kinds(tmp_path: Path) -> None:
    path = weights_file(tmp_path / "groups.safetensors", age="groups")
    predictor = Predictor.load(path)
    (told,) = predictor.predict(pictures(1))
    assert told.age_group in AGE_GROUPS and told.age is None
    assert told.gender is None and told.gender_probability is None
    with pytest.raises(UserError, match="by its own groups only"):
        Predictor.load(path, age_groups=["0-17", "18-100"])
    path = weights_file(tmp_path / "sigmoid.safetensors", age="ordinal", gender="sigmoid")
    (told,) = Predictor.load(path).predict(pictures(1))
    assert told.age is not None and 0 <= told.age <= 100
    assert told.gender_probability is not None and told.gender_probability >= 0.5


def test_faces_of_a_picture(by_year: Path, real_data: Path) -> None:
    yunet = find_detector(str(real_data / "models/face_detection_yunet_2023mar.onnx"))
    image = cv2.imread(str(real_data / "media/astronaut.png"), cv2.IMREAD_COLOR)[..., ::-1]
    predictor = Predictor.load(by_year, detector=yunet)
    (face,) = predictor.predict_faces(image)
    assert face.detection.box.left == pytest.approx(179, abs=10)
    assert list(face.asdict())[:3] == ["box", "score", "age"]
    # Those that are given are told of in their order, however many, wherever they are.
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
def test_what_is_no_picture(by_year: Path, image: np.ndarray) -> None:
    predictor = Predictor.load(by_year)
    for predict in (lambda: predictor.predict([image]), lambda: predictor.predict_faces(image)):
        with pytest.raises(ValueError, match="RGB uint8"):
            predict()


def test_weights_that_tell_no_age(tmp_path: Path, by_year: Path) -> None:
    with pytest.raises(UserError, match=r'there are no weights "defualt".*did you mean default'):
        Predictor.load("defualt")
    (tmp_path / "x.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(UserError, match="not a file of weights"):
        Predictor.load(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="holds no checkpoints"):
        Predictor.load(tmp_path)
    weights = load_served(by_year).weights
    spec = WeightsSpec(**vars(weights.spec) | {"heads": {}})
    save_weights(tmp_path / "other.safetensors", Weights(weights.tensors, spec))
    with pytest.raises(UserError, match="weights of resnet18 that tell age, gender: for age and"):
        Predictor.load(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match='engine "onnx" is not known'):
        Predictor.load(by_year, engine="onnx")
