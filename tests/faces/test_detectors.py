import hashlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pytest

from agenet.errors import UserError
from agenet.faces import detectors, yunet
from agenet.faces.crop import crop_face
from agenet.faces.detectors import create_detector
from agenet.faces.face import Detector
from agenet.faces.yunet import YUNET, YuNet, find_yunet

NOSES = {"astronaut.png": (223, 124), "grace_hopper.jpg": (268, 238)}  # as a person sees them


@pytest.fixture(scope="module")
def yunet_file(real_data: Path) -> Path:
    return real_data / "models" / YUNET.file_name


@pytest.fixture(params=["yunet", "hog"])
def detector(request: pytest.FixtureRequest) -> Detector:
    if request.param == "hog":
        pytest.importorskip("dlib")
        return create_detector("hog")
    return create_detector(str(request.getfixturevalue("yunet_file")))


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)


def resized(image: np.ndarray, scale: float) -> np.ndarray:
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize(
    ("clip", "people"),
    [
        ("classroom", 4),
        ("head-pose-face-detection-female-and-male", 2),
        ("face-demographics-walking", 2),
    ],
)
def test_yunet_finds_all_faces_in_the_clips(
    real_data: Path, yunet_file: Path, clip: str, people: int
) -> None:
    network = YuNet(yunet_file)
    video = cv2.VideoCapture(str(real_data / "media" / f"{clip}.gif"))
    frames = 0
    while (answer := video.read())[0]:
        frames += 1
        if frames % 4:
            continue
        faces = network.detect(cv2.cvtColor(answer[1], cv2.COLOR_BGR2RGB))
        assert len(faces) == people, frames
        areas = [face.box.width * face.box.height for face in faces]
        assert areas == sorted(areas, reverse=True)
        for face in faces:
            left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
            assert left_eye[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
            # Heads are tilted by up to 45 degrees.
            assert max(left_eye[1], right_eye[1]) < max(left_mouth[1], right_mouth[1])
            assert face.box.top < nose[1] < face.box.bottom
    assert frames > 30


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


def test_yunet_finds_tiny_and_huge_faces(real_data: Path, yunet_file: Path) -> None:
    image = read(real_data / "media" / "astronaut.png")[40:200, 140:300]
    network = YuNet(yunet_file)
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


# Where the file comes from.


class Publisher(ThreadingHTTPServer):
    """Serves a folder and notes what is asked for."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args: object) -> None:
                super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

            def log_message(self, format: str, *args: object) -> None:
                asked.append(self.path)

        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    (tmp_path / "served").mkdir()
    with Publisher(tmp_path / "served") as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cached(
    tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """What the publisher serves at its second address, and where it goes to."""
    monkeypatch.setenv("AGENET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("AGENET_OFFLINE", raising=False)
    monkeypatch.setattr(detectors, "_yunet_error", None)
    monkeypatch.setattr(yunet, "YUNET", replace(YUNET, url=publisher.url("first.onnx")))
    monkeypatch.setattr(yunet, "_MIRROR", publisher.url("second.onnx"))
    return tmp_path / "served" / "second.onnx", tmp_path / "cache" / "faces" / YUNET.file_name


def test_file_is_downloaded_once_from_either_address(
    publisher: Publisher, cached: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, path = cached
    served.write_bytes(b"a network")
    digest = hashlib.sha256(b"a network").hexdigest()
    monkeypatch.setattr(
        yunet, "YUNET", replace(yunet.YUNET, hash=replace(YUNET.hash, digest=digest))
    )
    assert find_yunet() == find_yunet() == path
    assert path.read_bytes() == b"a network"
    assert publisher.asked[-1] == "/second.onnx"
    assert publisher.asked.count("/second.onnx") == 1


def test_downloaded_file_is_yunet(
    publisher: Publisher, cached: tuple[Path, Path], yunet_file: Path
) -> None:
    cached[0].write_bytes(yunet_file.read_bytes())
    for _ in range(2):
        assert isinstance(create_detector("auto"), YuNet)
    assert publisher.asked.count("/second.onnx") == 1


def test_file_with_wrong_hash_is_refused(cached: tuple[Path, Path]) -> None:
    served, path = cached
    served.write_bytes(b"another network")
    served.with_name("first.onnx").write_bytes(b"another network")
    with pytest.raises(UserError, match=r"not 8f2383e4dd3c.* as published: deleted"):
        create_detector("yunet")
    assert [file.name for file in path.parent.iterdir()] == [f"{path.name}.lock"]


def test_fallback_to_hog_warns_once(
    publisher: Publisher, cached: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("dlib")
    assert create_detector().name == "hog"
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "HOG" in record.getMessage() and "answered 404" in record.getMessage()
    assert "/first.onnx" in record.getMessage() and "\n" not in record.getMessage()
    assert set(publisher.asked) == {"/first.onnx", "/second.onnx"}
    asked = len(publisher.asked)
    assert create_detector().name == "hog"
    assert len(publisher.asked) == asked
    assert sum(record.levelno == logging.WARNING for record in caplog.records) == 1


def test_offline(cached: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENET_OFFLINE", "1")
    with pytest.raises(UserError, match="AGENET_OFFLINE forbids the download: put http"):
        create_detector("yunet")
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(UserError, match=r"no face detector: .*; and .*\.\[webcam\]"):
        create_detector("auto")


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


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_invalid_network_file(
    tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "yunet.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"cannot open {path} as YuNet; its file is") as error:
        create_detector(str(path))
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_needs_no_jax() -> None:
    code = "import sys, agenet.faces.detectors, agenet.faces.crop; sys.exit('jax' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
