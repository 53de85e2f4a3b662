import copy
import hashlib
import itertools
import multiprocessing
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from agenet.errors import UserError
from agenet.faces.crop import crop_face
from agenet.faces.detectors import create_detector
from agenet.faces.face import Box, Detection, Detector
from agenet.faces.hog import Found, to_detection
from agenet.faces.yunet import BUNDLED_FILE, NMS_THRESHOLD, SCORE_THRESHOLD, YuNet
from tests.conftest import run_program

NOSES = {"astronaut.png": (223, 124), "grace_hopper.jpg": (268, 238)}  # as a person sees them


@pytest.fixture(params=["yunet", "hog"])
def detector(request: pytest.FixtureRequest) -> Detector:
    if request.param == "hog":
        pytest.importorskip("dlib")
    return create_detector(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def astronaut(real_data: Path) -> np.ndarray:
    return read(real_data / "media" / "astronaut.png")


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)


def resized(image: np.ndarray, scale: float) -> np.ndarray:
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


CLIPS = {
    "classroom": 4,
    "head-pose-face-detection-female-and-male": 2,
    "face-demographics-walking": 2,
}


def frames(path: Path) -> Iterator[np.ndarray]:
    video = cv2.VideoCapture(str(path))
    while (answer := video.read())[0]:
        yield cv2.cvtColor(answer[1], cv2.COLOR_BGR2RGB)


@pytest.mark.parametrize("clip", CLIPS)
def test_yunet_finds_all_faces_in_the_clips(real_data: Path, clip: str) -> None:
    network = YuNet()
    count = 0
    for frame in frames(real_data / "media" / f"{clip}.gif"):
        count += 1
        if count % 4:
            continue
        faces = network.detect(frame)
        assert len(faces) == CLIPS[clip], count
        areas = [face.box.width * face.box.height for face in faces]
        assert areas == sorted(areas, reverse=True)
        for face in faces:
            left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
            assert left_eye[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
            # Heads are tilted by up to 45 degrees.
            assert max(left_eye[1], right_eye[1]) < max(left_mouth[1], right_mouth[1])
            assert face.box.top < nose[1] < face.box.bottom
    assert count > 30


class Reference:
    """OpenCV's own detector on YuNet's file."""

    def __init__(self) -> None:
        self.detector = cv2.FaceDetectorYN.create(
            str(BUNDLED_FILE), "", (64, 64), SCORE_THRESHOLD, NMS_THRESHOLD
        )

    def search(self, image: np.ndarray) -> np.ndarray:
        # OpenCV 4.11 reads uninitialised memory where the shorter side is not more than 32.
        missing = np.maximum(64 - np.array(image.shape[:2]), 0)
        image = np.pad(image, [(0, missing[0]), (0, missing[1]), (0, 0)])
        self.detector.setInputSize(image.shape[1::-1])
        rows = self.detector.detect(np.ascontiguousarray(image[..., ::-1]))[1]
        return np.zeros((0, 15)) if rows is None else rows


def assert_equal_to_opencv(images: Iterable[np.ndarray], least: int) -> None:
    network, reference, found = YuNet(), Reference(), 0
    for image in images:
        rows, expected = network.search(image), reference.search(image)
        assert len(rows) == len(expected)
        # To a hundredth of a pixel, and to a ten-thousandth of a score.
        np.testing.assert_allclose(rows[:, :14], expected[:, :14], atol=0.01)
        np.testing.assert_allclose(rows[:, 14], expected[:, 14], atol=1e-4)
        found += len(rows)
    assert found >= least


@pytest.mark.parametrize("clip", CLIPS)
def test_boxes_of_clips_are_those_of_opencv(real_data: Path, clip: str) -> None:
    path = real_data / "media" / f"{clip}.gif"
    assert_equal_to_opencv(itertools.islice(frames(path), 0, None, 3), least=20)


@pytest.mark.slow
def test_boxes_of_images_are_those_of_opencv(real_data: Path, rng: np.random.Generator) -> None:
    """500 FairFace images at sizes that are no multiples of the strides, for example."""

    def images() -> Iterator[np.ndarray]:
        with tarfile.open(real_data / "fairface" / "fairface_val.tar") as archive:
            files = (archive.extractfile(member) for member in archive if member.isfile())
            for file in itertools.islice(filter(None, files), 500):
                image = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR_RGB)
                yield cv2.resize(image, rng.integers(60, 250, 2).tolist())

    assert_equal_to_opencv(images(), least=400)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("picture", NOSES)
def test_one_face(real_data: Path, detector: Detector, picture: str, grey: bool) -> None:
    image = read(real_data / "media" / picture)
    if grey:
        image = np.repeat(image.mean(2, keepdims=True).astype(np.uint8), 3, axis=2)
    (face,) = detector.detect(image)
    assert np.hypot(*np.subtract(face.box.center, NOSES[picture])) < 0.15 * face.box.width
    assert all(type(side) is float for side in (*face.box, face.score))


@pytest.mark.parametrize("scale", [0.3, 0.7, 2.5, 8.0])
def test_boxes_are_in_pixels_of_the_image(
    real_data: Path, detector: Detector, scale: float
) -> None:
    image = read(real_data / "media" / "astronaut.png")
    (reference,) = detector.detect(image)
    (face,) = detector.detect(resized(image, scale))
    assert np.array(face.box) / scale == pytest.approx(np.array(reference.box), abs=15)
    if face.landmarks is not None:
        assert face.landmarks / scale == pytest.approx(reference.landmarks, abs=8)


def test_array_views_are_accepted(real_data: Path, detector: Detector) -> None:
    image = read(real_data / "media" / "astronaut.png")
    mirrored = image[:, ::-1]
    (face,), (copy,) = detector.detect(mirrored), detector.detect(mirrored.copy())
    assert face.box == copy.box
    crop = crop_face(mirrored, face, 100, detector_name=detector.name)
    assert (crop == crop_face(mirrored.copy(), copy, 100, detector_name=detector.name)).all()


def test_yunet_finds_tiny_and_huge_faces(astronaut: np.ndarray) -> None:
    image, network = astronaut[40:200, 140:300], YuNet()
    for side in (20, 48, 600, 1280, 3000):  # One search at 1280 px does not find the last two.
        (face,) = network.detect(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA))
        assert face.box.width / side == pytest.approx(0.55, abs=0.1)


def test_faces_at_the_border(real_data: Path, detector: Detector) -> None:
    image = read(real_data / "media" / "astronaut.png")
    (reference,) = detector.detect(image)
    left, top = (round(side) + 10 for side in reference.box[:2])
    (face,) = detector.detect(image[top:400, left:400])
    box = np.array(face.box) + [left, top, left, top]
    assert box == pytest.approx(np.array(reference.box), abs=20)
    if detector.name == "hog":
        assert face.box.left < 0 and face.box.top < 0


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (1, 300), (7000, 3), (300, 30), (50, 0)])
def test_images_too_small_for_a_face(detector: Detector, shape: tuple[int, int]) -> None:
    for _ in range(5):  # What OpenCV 4.11 made up in narrow images differed from time to time.
        assert detector.detect(np.full((*shape, 3), 128, np.uint8)) == []


# Large images.


def portrait(astronaut: np.ndarray, width: int) -> np.ndarray:
    """Head and shoulders, with a face that is so many pixels wide."""
    return resized(astronaut[:260, 100:340], width / 90)


def assert_finds(
    detector: Detector, face: np.ndarray, shape: tuple[int, int], places: list[tuple[int, int]]
) -> None:
    """Pastes a face at (left, top) into a grey image: each is found once, at its place."""
    image = np.full((*shape, 3), 100, np.uint8)
    for left, top in places:
        image[top : top + face.shape[0], left : left + face.shape[1]] = face
    found = np.array([face.box.center for face in detector.detect(image)])
    assert len(found) == len(places)
    # In the portrait the centre of the face is at 0.51 and 0.45 of width and height.
    expected = places + np.multiply(face.shape[1::-1], (0.51, 0.45))
    distances = np.linalg.norm(found[:, None] - expected, axis=2)
    assert distances.min(axis=0).max() < 0.1 * face.shape[0]


@pytest.mark.parametrize(
    ("shape", "width", "columns", "rows"),
    [
        ((1000, 16_000), 90, 16, 1),  # a panorama
        ((16_000, 1000), 90, 1, 16),
        ((6000, 8000), 53, 4, 3),  # 48 megapixels
        ((3000, 4000), 53, 4, 3),
        ((6000, 8000), 700, 2, 2),
        ((400, 40_000), 60, 30, 1),
    ],
)
def test_faces_in_large_images(
    astronaut: np.ndarray,
    rng: np.random.Generator,
    shape: tuple[int, int],
    width: int,
    columns: int,
    rows: int,
) -> None:
    step = np.array([shape[1] / columns, shape[0] / rows])
    cells = [(column, row) for column in range(columns) for row in range(rows)]
    places = [tuple(((cell + rng.uniform(0, 0.4, 2)) * step).astype(int)) for cell in cells]
    assert_finds(YuNet(), portrait(astronaut, width), shape, places)


def test_dlib_finds_faces_in_a_panorama(astronaut: np.ndarray) -> None:
    pytest.importorskip("dlib")
    places = [(200, 100), (3000, 120)]
    assert_finds(create_detector("hog"), portrait(astronaut, 300), (1000, 5000), places)


@pytest.mark.parametrize("width", [40, 200, 400, 700])
def test_faces_between_tiles(astronaut: np.ndarray, width: int) -> None:
    """The same face everywhere along an image of three tiles."""
    face, network = portrait(astronaut, width), YuNet()
    shape, step = (face.shape[0] + 40, 5000), round(1.3 * face.shape[1])
    for start in range(0, step, step // 6):
        places = [(left, 20) for left in range(start, shape[1] - face.shape[1], step)]
        assert_finds(network, face, shape, places)


# Threads and processes.


def test_threads_may_share_a_detector(real_data: Path, detector: Detector) -> None:
    images = [
        resized(read(real_data / "media" / name), 1 + i / 8) for i in range(4) for name in NOSES
    ]
    expected = [detector.detect(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for found, faces in zip(pool.map(detector.detect, images * 3), expected * 3, strict=True):
            assert [face.box for face in found] == [face.box for face in faces]


def test_pickles_and_copies(astronaut: np.ndarray, detector: Detector) -> None:
    (expected,) = detector.detect(astronaut)
    for again in (pickle.loads(pickle.dumps(detector)), copy.deepcopy(detector)):
        (face,) = again.detect(astronaut)
        assert face.box == expected.box


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_processes(astronaut: np.ndarray, detector: Detector) -> None:
    assert len(detector.detect(astronaut)) == 1
    process = multiprocessing.get_context("fork").Process(
        target=lambda: sys.exit(len(detector.detect(astronaut)))
    )
    process.start()
    process.join(60)
    assert process.exitcode == 1


def test_pickle_holds_the_file(tmp_path: Path, astronaut: np.ndarray) -> None:
    path = tmp_path / "yunet.onnx"
    path.write_bytes(BUNDLED_FILE.read_bytes())
    pickled = pickle.dumps(create_detector(path))
    path.unlink()
    assert len(pickle.loads(pickled).detect(astronaut)) == 1


# The bundled file, and others.


def test_bundled_file_is_the_published_one() -> None:
    content = BUNDLED_FILE.read_bytes()
    assert len(content) == 232_589
    digest = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
    assert hashlib.sha256(content).hexdigest() == digest
    card = BUNDLED_FILE.with_suffix(".md").read_text()
    assert digest in card and "MIT License" in card and "Shiqi Yu" in card


def test_nothing_is_downloaded_or_cached(tmp_path: Path) -> None:
    """Each detector opens where there is no network, no dlib and no place to write."""
    code = (
        "import socket, sys; socket.socket = socket.getaddrinfo = None; sys.modules['dlib'] = None;"
        "import numpy as np; from agenet.faces.detectors import create_detector as create;"
        "print(*(create(name).detect(np.zeros((99, 99, 3), np.uint8)) for name in sys.argv[1:]))"
    )
    home = {"HOME": str(tmp_path), "AGENET_CACHE": str(tmp_path / "cache")}
    assert run_program("-c", code, "auto", "yunet", **home).split() == ["[]", "[]"]
    assert not list(tmp_path.iterdir())


def test_boxes_of_turned_heads_become_frontal_ones() -> None:
    box = Box(100.0, 100.0, 200.0, 200.0)
    assert to_detection(Found(box, 0.5, 0)) == Detection(box, 0.5)
    turned = to_detection(Found(box, 0.5, 2)).box
    assert turned.width == turned.height == pytest.approx(91.8)
    assert turned.center == pytest.approx((150, 155))


def test_hog_without_dlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(UserError, match=r'the HOG face detector needs .*dlib.* "\.\[webcam\]"'):
        create_detector("hog")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yunett", "not one of auto, yunet, hog, .* did you mean yunet"),
        ("HOG", "did you mean hog"),
        ("retina", "the path of a YuNet ONNX file$"),
        ("nowhere/yunet.onnx", "nowhere/yunet.onnx is not a file"),
    ],
)
def test_no_such_detector(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_detector(name)


def open_all_but_one_line(path: Path) -> str:
    """The error of a file that is no detector's, which is one line and names it."""
    with pytest.raises(UserError) as error:
        create_detector(str(path))
    message = str(error.value)
    assert message.isprintable() and len(message) < 400 and str(path) in message
    return message


def changed(change: Callable[[Any], object]) -> bytes:
    """The bundled file with a change to its `onnx.ModelProto`."""
    model = onnx.load_from_string(BUNDLED_FILE.read_bytes())
    change(model)
    return model.SerializeToString()


def with_sizes(*sizes: int | str) -> Callable[[Any], object]:
    def change(model: Any) -> None:
        value = onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, sizes)
        model.graph.input[0].CopyFrom(value)

    return change


@pytest.mark.parametrize(
    "sizes", [(1, 3, 320, 320), (1, 3, "height", "width"), ("n", "c", "h", "w"), (1, 3, 100, 99)]
)
def test_files_for_other_sizes(tmp_path: Path, astronaut: np.ndarray, sizes: tuple) -> None:
    path = tmp_path / "görüntü 顔.onnx"
    path.write_bytes(changed(with_sizes(*sizes)))
    (face,), (expected,) = (
        create_detector(name).detect(astronaut) for name in (str(path), "yunet")
    )
    assert face.box == expected.box and face.score == expected.score


def test_constants_among_the_inputs(tmp_path: Path, astronaut: np.ndarray) -> None:
    def change(model: Any) -> None:
        for tensor in model.graph.initializer:
            model.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )

    path = tmp_path / "old.onnx"
    path.write_bytes(changed(change))
    assert len(YuNet(path).detect(astronaut)) == 1


def loops(model: Any) -> None:
    names = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in "ab"]
    body = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["a"], ["b"])], "body", [], names)
    model.graph.node.append(onnx.helper.make_node("Loop", ["", "", "input"], ["c"], body=body))


def weights_elsewhere(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def functions(model: Any) -> None:
    model.functions.add(name="twice", domain="agenet")


def without_an_output(model: Any) -> None:
    del model.graph.output[-1]


def two_inputs(model: Any) -> None:
    model.graph.input.add().CopyFrom(model.graph.input[0])
    model.graph.input[1].name = "other"


def doubled(model: Any, first: str, times: int) -> None:
    """Appends nodes that double the output `kps_32` and its memory each time."""
    helper, name = onnx.helper, first
    for number in range(times):
        model.graph.node.append(helper.make_node("Concat", [name] * 2, [f"x{number}"], axis=1))
        name = f"x{number}"
    model.graph.node[-1].output[0] = "kps_32"


def too_large(model: Any) -> None:
    next(node for node in model.graph.node if node.output[0] == "kps_32").output[0] = "first"
    doubled(model, "first", 40)


def for_one_size(model: Any) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "290":  # the shape [1, -1, 1]
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([1, 400, 1]), tensor.name))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (loops, "it has loops or branches"),
        (weights_elsewhere, "it keeps weights in another file"),
        (functions, "it has functions"),
        (without_an_output, "kps_32"),
        (two_inputs, "it has 2 inputs"),
        (too_large, "rena"),
        (for_one_size, "Reshape"),
    ],
)
def test_other_networks_are_refused(
    tmp_path: Path, change: Callable[[Any], object], reason: str
) -> None:
    path = tmp_path / "yunet.onnx"
    path.write_bytes(changed(change))
    message = open_all_but_one_line(path)
    assert f"{path} cannot be used as YuNet: " in message and reason in message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\n",
        BUNDLED_FILE.read_bytes()[:-1000],
        b"\xff" * 100,
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"ORTM" * 100,
    ],
)
def test_files_of_another_kind_are_refused(
    tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "yunet.onnx"
    path.write_bytes(content)
    assert "cannot be used as YuNet: " in open_all_but_one_line(path)
    assert capfd.readouterr() == ("", "")


def test_no_file(tmp_path: Path) -> None:
    path = tmp_path / "folder.onnx"
    path.mkdir()
    assert "is not a file" in open_all_but_one_line(path)
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    assert "is not a file" in open_all_but_one_line(pipe)
    large = tmp_path / "large.onnx"
    with large.open("wb") as file:
        file.truncate(2**40)  # without blocks on the disk
    assert "is larger than 16 MB" in open_all_but_one_line(large)


def test_flipped_bits(tmp_path: Path, rng: np.random.Generator, astronaut: np.ndarray) -> None:
    """A damaged file gives other boxes, or one line."""
    content = np.frombuffer(BUNDLED_FILE.read_bytes(), np.uint8)
    path = tmp_path / "yunet.onnx"
    refused = accepted = 0
    for number in range(40):
        # The first thousands of bytes describe the network, most of the others are weights.
        place = rng.integers(3000 if number % 2 else len(content))
        damaged = content.copy()
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged.tobytes())
        try:
            detector = create_detector(str(path))
        except UserError as error:
            refused += str(error).isprintable() and str(path) in str(error)
        else:
            accepted += 1
            for face in detector.detect(astronaut):
                assert np.isfinite(face.box).all() and np.isfinite(face.landmarks).all()
    assert refused + accepted == 40 and min(refused, accepted) > 5


def test_needs_no_jax() -> None:
    code = "import sys, agenet.faces.detectors, agenet.faces.crop; sys.exit('jax' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
