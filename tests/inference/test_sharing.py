"""One predictor in several threads and processes."""

import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from agenet.distributed.cores import available_cores
from agenet.errors import UserError
from agenet.faces.face import Box, Detection, Prediction
from agenet.faces.image_io import read_image
from agenet.inference import engines
from agenet.inference.engines import create_engine
from agenet.inference.predictor import Predictor
from agenet.inference.threads import choose_threads
from agenet.weights.spec import InputSpec
from tests.conftest import run_program
from tests.random_weights import write_random_weights

IMAGES = [np.full((40, 40, 3), 60 * shade, np.uint8) for shade in range(4)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    images = InputSpec(32, (127.0,) * 3, (128.0,) * 3, "bilinear", 32 / 37)
    heads = {"age": "distribution", "gender": "softmax"}
    return write_random_weights(path, "resnet18", "torchvision", heads, images)


@pytest.mark.parametrize("name", ["yunet", "hog"])
def test_detectors_in_threads(real_data: Path, weights: Path, name: str) -> None:
    """Threads that detect in images of various sizes at the same time do not disturb each other."""
    detector = name
    if name == "yunet":
        detector = str(real_data / "models" / "face_detection_yunet_2023mar.onnx")
    else:
        pytest.importorskip("dlib")
    predictor = Predictor.load(weights, detector=detector)
    media = [read_image(real_data / "media" / n) for n in ("astronaut.png", "grace_hopper.jpg")]
    images = [
        cv2.resize(image, (side, side * image.shape[0] // image.shape[1]))
        for image in media
        for side in (200, 240, 320)
    ]
    expected = [predictor.predict_faces(image) for image in images]
    assert sum(map(len, expected)) > 3
    order = np.random.default_rng(0).permutation(4 * len(images)) % len(images)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(predictor.predict_faces, [images[i] for i in order]))
    for i, faces in zip(order, found, strict=True):
        assert [face.detection.box for face in faces] == [f.detection.box for f in expected[i]]
        for one, other in zip(faces, expected[i], strict=True):
            assert one.prediction.age == pytest.approx(other.prediction.age, abs=1e-3)


class OneAtATime:
    """A detector that fails if two threads use it at once."""

    name = "yunet"

    def __init__(self) -> None:
        self.busy = False

    def detect(self, image: np.ndarray) -> list[Detection]:
        assert not self.busy
        self.busy = True
        threading.Event().wait(0.002)
        self.busy = False
        return [Detection(Box(5, 5, 30, 30), 0.9)]


class Shared:
    """A detector that needs two threads at once."""

    name = "yunet"
    thread_safe = True

    def __init__(self) -> None:
        self.both = threading.Barrier(2)

    def detect(self, image: np.ndarray) -> list[Detection]:
        self.both.wait(60)
        return []


def test_detectors_of_users_take_turns_or_say_that_they_need_not(weights: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        predictor = Predictor.load(weights, detector=OneAtATime())
        assert [len(faces) for faces in pool.map(predictor.predict_faces, 20 * IMAGES[:1])] == (
            20 * [1]
        )
        predictor = Predictor.load(weights, detector=Shared())
        assert list(pool.map(predictor.predict_faces, 2 * IMAGES[:1])) == [[], []]


@pytest.mark.parametrize("engine", ["jax", "onnxruntime"])
def test_pickled(weights: Path, engine: str) -> None:
    groups = ["0-17", "18-100"]
    predictor = Predictor.load(
        weights, detector=OneAtATime(), align=False, age_groups=groups, engine=engine, threads=1
    )
    expected = predictor.predict(IMAGES)
    content = pickle.dumps(predictor)
    assert len(content) < 10_000  # no weights in it
    copy = pickle.loads(content)
    assert copy.predict(IMAGES) == expected and len(copy.predict_faces(IMAGES[0])) == 1
    # A copy of a copy, after the first is gone.
    del predictor
    again = pickle.loads(pickle.dumps(copy))
    assert again.predict(IMAGES) == expected


def test_in_spawned_processes(weights: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(weights)
    expected = [predictor.predict([image]) for image in IMAGES]
    context = multiprocessing.get_context("spawn")
    lost = tmp_path / "lost.safetensors"
    lost.write_bytes(weights.read_bytes())
    bereft = Predictor.load(lost)
    lost.unlink()
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        found = list(pool.map(predictor.predict, [[image] for image in IMAGES]))
        # An error does not end the process of the pool.
        with pytest.raises(UserError, match="there are no weights") as caught:
            pool.submit(bereft.predict, IMAGES).result(60)
        assert "\n" not in str(caught.value)
        assert pool.submit(predictor.predict, IMAGES[:1]).result(60) == expected[0]
    for one, other in zip(found, expected, strict=True):
        assert one[0].age == pytest.approx(other[0].age, abs=1e-3)


def test_bundled_weights_are_pickled_by_name(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie elsewhere on another machine."""
    monkeypatch.setattr(engines, "DEFAULT_FILE", weights)
    content = pickle.dumps(create_engine(weights))
    assert b"default" in content and str(weights).encode() not in content


def test_changed_weights_are_refused(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(weights.read_bytes())
    content = pickle.dumps(create_engine(path))
    images = InputSpec(16, (0.0,) * 3, (1.0,) * 3, "bilinear", 1.0)
    write_random_weights(path, "resnet18", "torchvision", {"gender": "softmax"}, images)
    with pytest.raises(UserError, match="has other weights than when the predictor was loaded"):
        pickle.loads(content)(np.zeros((1, 37, 37, 3), np.uint8))


FORK = """
import os, pickle, signal, sys
import numpy as np
from agenet import Predictor
from agenet.errors import UserError

predictor = Predictor.load(sys.argv[1], engine=sys.argv[2], detector=sys.argv[3] or "auto")
image = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
expected = predictor.predict([image])
if sys.argv[3]:
    predictor.predict_faces(image)
content = pickle.dumps(predictor)
child = os.fork()
if not child:
    signal.alarm(60)
    try:
        for one in (predictor, pickle.loads(content)):
            try:
                found = one.predict([image])
                if sys.argv[3]:
                    one.predict_faces(image)
                print("same" if found == expected else "other", flush=True)
            except UserError as error:
                print("error:", error, flush=True)
        try:
            Predictor.load(sys.argv[1], engine=sys.argv[2])
            print("loaded", flush=True)
        except UserError as error:
            print("error:", error, flush=True)
        if sys.argv[2] == "jax":  # which is not made for it
            os._exit(0)
        sys.exit()  # waits for lost threads, if there are any left
    except SystemExit:
        raise
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
status = os.waitpid(child, 0)[1]
print("exit", os.waitstatus_to_exitcode(status))
"""


def test_in_a_forked_process(weights: Path, real_data: Path) -> None:
    yunet = str(real_data / "models" / "face_detection_yunet_2023mar.onnx")
    printed = run_program("-W", "ignore", "-c", FORK, str(weights), "onnxruntime", yunet)
    assert printed.splitlines() == ["same", "same", "loaded", "exit 0"]


def test_jax_in_a_forked_process(weights: Path) -> None:
    printed = run_program("-W", "ignore", "-c", FORK, str(weights), "jax", "").splitlines()
    assert len(printed) == 4 and printed[3] == "exit 0"
    for line in printed[:3]:
        assert line.startswith("error: JAX cannot run in a process forked from one that uses it")


def test_threads(weights: Path) -> None:
    before = cv2.getNumThreads()
    try:
        expected = Predictor.load(weights).predict(IMAGES)
        predictor = Predictor.load(weights, threads=1)
        assert cv2.getNumThreads() == 1
        for one, other in zip(predictor.predict(IMAGES), expected, strict=True):
            assert isinstance(one, Prediction) and one.age == pytest.approx(other.age, abs=1e-3)
        for wrong in (0, -1, True, 1.5, "2"):
            with pytest.raises(UserError, match="threads: give a whole number from 1, not"):
                Predictor.load(weights, threads=wrong)  # type: ignore[arg-type]
    finally:
        cv2.setNumThreads(before)


def test_cores_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = available_cores(tmp_path)
    assert cores >= 1
    for text, expected in (("max 100000", cores), ("150000 100000", min(cores, 2))):
        (tmp_path / "cpu.max").write_text(f"{text}\n")
        assert available_cores(tmp_path) == expected
    (tmp_path / "cpu.max").write_text("20000 100000\n")
    assert available_cores(tmp_path) == 1
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    for quota, expected in (("-1", cores), ("100000", 1), ("", cores)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
        assert available_cores(tmp_path) == expected
    monkeypatch.setattr("agenet.inference.threads.available_cores", lambda: 3)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert choose_threads(None) == 3
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert choose_threads(None) is None and choose_threads(5) == 5


def test_jax_starts_with_a_number_of_threads() -> None:
    code = (
        "import os; from agenet.inference.threads import xla_threads\n"
        "import jax\n"
        "def count(): return len(os.listdir('/proc/self/task'))\n"
        "before = count()\n"
        "with xla_threads(int(os.environ['WANTED'])): jax.devices()\n"
        "print(count() - before, os.environ.get('NPROC'))"
    )
    some = [run_program("-c", code, WANTED=str(n), JAX_NUM_CPU_DEVICES="1") for n in (1, 9)]
    few, many = (int(text.split()[0]) for text in some)
    assert many - few >= 8 and some[0].split()[1] == "None"
