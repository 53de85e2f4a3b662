"""The program that exports trained networks, and what its files say about themselves."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

from agenet.cli.app import run_command
from agenet.data.records import Records
from agenet.errors import UserError
from agenet.export.stablehlo import from_stablehlo
from agenet.faces.image_io import read_image
from agenet.inference import export, export_faces
from agenet.inference.network import load_network
from agenet.inference.predictor import Predictor
from agenet.labels import AGE_GROUPS, GENDERS
from agenet.weights.spec import InputSpec
from tests.conftest import ROOT, run_program
from tests.random_weights import write_random_weights

PROGRAM = ("-m", "agenet.cli", "export")
HEADS = {"age": "distribution", "gender": "softmax"}


@pytest.fixture
def trained(tiny_net: str, tmp_path: Path) -> str:
    """A file of weights of a small network that sees 16 of 20 pixels."""
    path = tmp_path / "trained.safetensors"
    images = InputSpec(16, (127.0,) * 3, (64.0,) * 3, "bilinear", 0.8)
    write_random_weights(path, tiny_net, "tiny", HEADS, images)
    return str(path)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    folder = tmp_path / "faces"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(48):
        image = cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), (24, 30))
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return folder


def test_onnx(trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.onnx"
    run_command(["export", trained, str(output)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "tiny, onnx"
    assert printed[1].endswith("images, uint8 [batch, 20, 20, 3], RGB; it sees 16 px")
    assert printed[2].endswith("age [batch, 8], gender [batch, 2], years [batch, 101]")
    assert "on 16 drawn faces: largest difference" in printed[3]
    assert len(printed) == 5 and str(output) in printed[4]

    model = onnx.load(output)
    metadata = {prop.key: json.loads(prop.value) for prop in model.metadata_props}
    served = load_network(trained)
    assert metadata["weights"]["heads"] == HEADS
    assert metadata["labels"] == {
        "age": [*AGE_GROUPS],
        "gender": [*GENDERS],
        "years": [*range(101)],
    }
    # Nothing invites to normalise what the graph normalises itself.
    assert metadata["input"]["normalise"] is False
    assert "mean" not in str(metadata) and "std" not in str(metadata)
    assert "Do not normalise" in model.doc_string and "[batch, 20, 20, 3]" in model.doc_string
    images = export_faces.draw_faces(20)
    (gender,) = onnxruntime.InferenceSession(output).run(["gender"], {"images": images})
    np.testing.assert_allclose(gender, served.make_forward()(images)["gender"], atol=1e-4)

    before = output.read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        run_command(["export", trained, str(output)])
    assert output.read_bytes() == before
    run_command(["export", trained, str(output), "--overwrite", "--half"])
    assert "weights in 16 bits" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", "trained.safetensors"]


def test_stablehlo(
    trained: str, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.stablehlo"
    run_command(["export", trained, str(output), "--format=stablehlo", f"--check={faces}"])
    assert f"on 24 faces of {faces}: largest difference" in capsys.readouterr().out
    function, metadata = from_stablehlo(output.read_bytes())
    assert json.loads(metadata["weights"])["heads"] == HEADS
    assert "Do not normalise" in metadata["description"]
    assert function(np.zeros((3, 20, 20, 3), np.uint8))["years"].shape == (3, 101)


def test_int8_is_written_only_without_loss_of_accuracy(
    trained: str,
    make_records: Callable[..., Records],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepared = make_records()
    monkeypatch.setattr(export_faces, "open_records", lambda name, data_dir: prepared)
    output = tmp_path / "out.onnx"
    arguments = [trained, str(output), "--format=int8", "--check=noise/faces"]
    monkeypatch.setattr(export, "LOST_POINTS", -100.0)
    with pytest.raises(UserError, match=r"^not written: .*points are lost.*before.*after"):
        run_command(["export", *arguments])
    assert not output.exists()
    monkeypatch.setattr(export, "LOST_POINTS", 100.0)
    run_command(["export", *arguments])
    printed = capsys.readouterr().out
    test_faces = (prepared.fold == 0).sum()
    assert f"on {test_faces} test faces of noise/faces/1.0.0: age " in printed
    model = onnx.load(output)
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    assert "Do not normalise" in model.doc_string


def test_int8_checked_on_a_folder(trained: str, faces: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    for path in list(faces.iterdir())[:10]:
        path.unlink()
    with pytest.raises(UserError, match="has 38 faces, at least 40 are needed, half of them to"):
        run_command(["export", trained, str(output), "--format=int8", f"--check={faces}"])


def test_accuracy_without_labels_is_judged_by_probabilities() -> None:
    faces = export.Faces("8 faces", np.zeros(()), {}, np.zeros(()))

    def answer(first: float, second: float) -> export.Run:
        return lambda _: {"age": np.log(np.array([[first, second, 1 - first - second]] * 8, "f4"))}

    verdict = export.check_accuracy(answer(0.6, 0.3), answer(0.6, 0.3), faces)
    assert verdict == "on 8 faces: age differs for 0.00%, which loses 0.00 points"
    # The network wavers: the other answer is as good.
    verdict = export.check_accuracy(answer(0.402, 0.398), answer(0.398, 0.402), faces)
    assert verdict == "on 8 faces: age differs for 100.00%, which loses 0.40 points"
    with pytest.raises(UserError, match=r"differs for 100.00%, which loses 30.00 points; a prep"):
        export.check_accuracy(answer(0.6, 0.3), answer(0.3, 0.6), faces)
    with pytest.raises(UserError, match="not written"):
        export.check_accuracy(answer(0.6, 0.3), answer(np.nan, 0.3), faces)


@pytest.mark.parametrize("fold", [0, 1, 7])
def test_one_kind_of_images_is_divided(
    make_records: Callable[..., Records], monkeypatch: pytest.MonkeyPatch, fold: int
) -> None:
    """Test images alone, or images for training alone, calibrate and check."""
    prepared = make_records(60)
    prepared = dataclasses.replace(prepared, fold=np.full(60, fold, np.int32))
    monkeypatch.setattr(export_faces, "open_records", lambda name, data_dir: prepared)
    found = export_faces.find_faces("noise/faces", "", 20, to_calibrate=True)
    assert found.what == "30 faces of noise/faces/1.0.0"
    assert len(found.images) == len(found.others) == len(found.labels["age"]) == 30
    both = {image.tobytes() for image in np.concatenate([found.images, found.others])}
    assert len(both) == 60


def test_a_program_that_knows_only_the_file(real_data: Path, tmp_path: Path) -> None:
    """It crops and resizes as the file says, and predicts what agenet predicts."""
    output = tmp_path / "default.onnx"
    run_command(["export", "default", str(output)])
    yunet = real_data / "models" / "face_detection_yunet_2023mar.onnx"
    predictor = Predictor.load(detector=yunet)
    program = ROOT / "tests" / "inference" / "knows_only_the_file.py"
    assert "import agenet" not in program.read_text()
    for name in ("astronaut.png", "grace_hopper.jpg"):
        image = real_data / "media" / name
        (face,) = predictor.predict_faces(read_image(image))
        detected = {"box": face.detection.box, "landmarks": face.detection.landmarks.tolist()}
        arguments = [sys.executable, program, output, image, json.dumps(detected)]
        found = json.loads(subprocess.check_output(arguments, cwd=tmp_path, text=True))
        assert found["age_group"] == face.prediction.age_group
        assert found["gender"] == face.prediction.gender
        assert found["age"] == pytest.approx(face.prediction.age, abs=1)
        assert found["probability"] == pytest.approx(face.prediction.gender_probability, abs=0.03)


def test_different_outputs_are_not_written(
    trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.onnx"
    run_onnx = export.run_onnx

    def run(content: bytes) -> export.Run:
        return lambda images: {k: v + np.nan for k, v in run_onnx(content)(images).items()}

    monkeypatch.setattr(export, "run_onnx", run)
    with pytest.raises(UserError, match=r"^not written: on 16 drawn faces .* by nan"):
        run_command(["export", trained, str(output)])
    assert not output.exists()


def test_mistakes(trained: str, tmp_path: Path) -> None:
    output = str(tmp_path / "out.onnx")
    for arguments, message in (
        ([str(tmp_path / "none"), output], "there are no weights"),
        ([trained, str(tmp_path)], "is a folder: name a file in it"),
        ([trained, str(tmp_path / "no" / "x")], f"^{tmp_path / 'no'}: no such folder"),
        ([trained, output, "--format=caffe"], "--format.*caffe.*onnx"),
        ([trained, output, "--format=stablehlo", "--half"], "--half goes with"),
        ([trained, output, "--format=int8"], "needs --check=FACES"),
        ([trained, output, "--check=nowhere"], "--check=nowhere: neither a folder"),
        ([trained, output, "--check=no/where", f"--data_dir={tmp_path}"], "is not prepared"),
        ([trained], "argument .OUTPUT., see agenet export --help"),
    ):
        with pytest.raises(UserError, match=message):
            run_command(["export", *arguments])
    assert not Path(output).exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no faces to check on"):
        run_command(["export", trained, output, f"--check={tmp_path / 'empty'}"])


def test_one_line(tmp_path: Path) -> None:
    printed = run_program(*PROGRAM, str(tmp_path / "none"), str(tmp_path), fails=True)
    assert printed == f"error: {tmp_path} is a folder: name a file in it\n"
