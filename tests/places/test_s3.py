"""Commands with addresses, against a server on this machine that speaks S3."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest

from agenet.cli.app import run_command
from agenet.data.records import open_records
from agenet.errors import UserError
from agenet.places.fetching import fetch
from agenet.places.lease import Lease
from agenet.places.stores import open_store, parse_address
from agenet.places.working import look_at_workdir, open_workdir
from tests.conftest import ROOT, run_program
from tests.places.stores import serve_s3
from tests.tiny import read_rows

pytestmark = pytest.mark.slow

# A network that compiles in seconds, on small images.
CONFIG = """
from configs import default


def get_config():
    config = default.get_config()
    config.dataset.name = "drawn_faces/faces"
    config.model.name = "levi_hassner"
    config.input.size = 72
    config.input.crop_size = 67
    config.batch_size = 16
    config.duration = "30 steps"
    config.evaluate_every = "10 steps"
    config.checkpoint_every = "2 steps"
    config.trackers = ()
    return config
"""
# Another machine need not wait for the lease of one that was killed for as long as usual.
TRAIN = "import agenet.places.lease as l; l.DEAD = 1; from agenet.cli import main; main('train')"


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        yield from serve_s3(patch)


def upload(s3: Any, folder: Path, name: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            s3.upload_file(str(path), "bucket", f"{name}/{path.relative_to(folder).as_posix()}")


def keys(s3: Any, prefix: str) -> list[str]:
    found = s3.list_objects_v2(Bucket="bucket", Prefix=prefix).get("Contents", [])
    return [each["Key"].removeprefix(prefix) for each in found]


def figures(workdir: Path) -> tuple[Any, Any]:
    """All that a run has measured."""
    report = json.loads((workdir / "report.json").read_bytes())
    return report["evaluation"]["tasks"], read_rows(workdir)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG)
    return f"--config={path}"


@pytest.fixture(scope="module")
def data(s3: Any, drawn_faces: Path) -> str:
    """Prepares a data set at an address, which is then there."""
    address = "s3://bucket/data"
    release = drawn_faces.with_name("release")
    run_command(["prepare", "drawn_faces", f"--manual_dir={release}", f"--data_dir={address}"])
    assert "drawn_faces/faces/1.1.0/dataset_info.json" in keys(s3, "data/")
    here, there = (open_records("drawn_faces/faces", str(d)) for d in (drawn_faces, address))
    assert there.fingerprint() == here.fingerprint() and there.checksum() == here.checksum()
    return f"--config.dataset.data_dir={address}"


@pytest.fixture(scope="module")
def run(s3: Any, config: str, data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run that was killed on one machine and was resumed on another."""
    address = "s3://bucket/runs/a"
    first, second = (str(tmp_path_factory.mktemp(name)) for name in ("first", "second"))
    arguments = ["-c", TRAIN, config, data, f"--workdir={address}"]
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"AGENET_CACHE": first},
        stderr=subprocess.PIPE,
    ) as process:
        while "latest/4.zip" not in keys(s3, "runs/a/checkpoints/"):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert "latest/30.zip" not in keys(s3, "runs/a/checkpoints/")
    printed = run_program(*arguments, AGENET_CACHE=second)
    assert f"{address}: process " in printed and "until it was killed: watching" in printed
    assert re.search(r"resuming from step \d+ of 30", printed)
    assert ".agenet-lease" not in keys(s3, "runs/a/")
    return address


def test_a_killed_run_resumes_elsewhere(
    run: str, config: str, drawn_faces: Path, tmp_path: Path
) -> None:
    run_program(
        *("-m", "agenet.cli", "train", config, f"--workdir={tmp_path}"),
        f"--config.dataset.data_dir={drawn_faces}",
    )
    assert figures(look_at_workdir(run)) == figures(tmp_path)


def test_a_finished_run_is_used(
    run: str, s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command(["report", run])
    assert f"agenet report {run} OTHER_RUN" in capsys.readouterr().out
    image = tmp_path / "face.png"
    cv2.imwrite(str(image), cv2.imread(str(ROOT / ".github/images/astronaut.jpg"))[:200, :200])
    rows = []
    run_command(["port", run, str(tmp_path / "w.safetensors")])
    s3.upload_file(str(tmp_path / "w.safetensors"), "bucket", "w.safetensors")
    for model in (run, "s3://bucket/w.safetensors", str(tmp_path / "w.safetensors")):
        with pytest.raises(SystemExit, match="0"):
            run_command(["predict", str(image), "--cropped", f"--model={model}", "--jsonl=-"])
        rows.append(capsys.readouterr().out.splitlines()[-1])
    assert rows[0] == rows[1] == rows[2]
    run_command(["export", run, str(tmp_path / "faces.onnx")])
    assert (tmp_path / "faces.onnx").is_file()
    with pytest.raises(UserError, match=r"s3://bucket/a.onnx: here only a path on this machine"):
        run_command(["export", run, "s3://bucket/a.onnx"])


def test_a_run_is_tested_again(run: str, s3: Any) -> None:
    before = figures(look_at_workdir(run))
    s3.delete_object(Bucket="bucket", Key="runs/a/report.json")
    run_command(["evaluate", f"--workdir={run}"])
    assert figures(look_at_workdir(run)) == before
    with pytest.raises(UserError, match="s3://bucket/runs/b: there is nothing there"):
        run_command(["evaluate", "--workdir=s3://bucket/runs/b"])


def test_a_run_is_trained_further(run: str, config: str, data: str, tmp_path: Path) -> None:
    arguments = [config, data, "--config.duration=2 steps", "--config.evaluate_every=2 steps"]
    printed = run_program(
        *("-m", "agenet.cli", "train", *arguments, f"--config.init={run}", f"--workdir={tmp_path}")
    )
    assert f"initial weights: {run}" in printed
    record = json.loads((tmp_path / "report.json").read_bytes())
    assert record["config"]["init"] == run
    text = "".join(p.read_text("utf-8", "replace") for p in tmp_path.rglob("*") if p.is_file())
    assert "secret-of-a-test" not in text


def test_tables_and_images(
    run: str, s3: Any, drawn_faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = open_records("drawn_faces/faces", str(drawn_faces))
    lines = ["path,age,gender,subject"]
    for row in range(60):
        s3.put_object(Bucket="bucket", Key=f"own/images/{row}.jpg", Body=records.images[row])
        gender = "female" if records.labels["gender"][row] else "male"
        lines.append(f"images/{row}.jpg,{row},{gender},{row // 2}")
    s3.put_object(Bucket="bucket", Key="own/faces.csv", Body="\n".join(lines).encode())
    s3.put_object(Bucket="bucket", Key="own/other.bin", Body=b"not named by the table")
    table = "--table=s3://bucket/own/faces.csv"
    run_command(["evaluate", f"--model={run}", table, f"--out={tmp_path / 'out'}"])
    report = json.loads((tmp_path / "out/report.json").read_bytes())
    assert "faces.csv" in json.dumps(report)
    assert not list(fetch("s3://bucket/own/faces.csv").parent.rglob("other.bin"))
    own = ["prepare", "images", "--name=mine", "--data_dir=s3://bucket/data"]
    run_command([*own, table])
    assert "mine/faces/1.0.0/report.html" in keys(s3, "data/")
    printed = capsys.readouterr().out
    assert "--config.dataset.data_dir=s3://bucket/data" in printed
    assert len(open_records("mine/faces", "s3://bucket/data").fold) > 50
    run_command([*own, table])
    assert "mine/faces/1.0.0 is already prepared" in capsys.readouterr().out
    run_command([*own, table, "--overwrite"])
    assert len(open_records("mine/faces", "s3://bucket/data").fold) > 50
    with pytest.raises(UserError, match=r"s3://bucket/own/x.csv: there is no such bucket, folder"):
        run_command([*own, "--table=s3://bucket/own/x.csv", "--overwrite"])


def test_mistakes(s3: Any, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = ("-m", "agenet.cli", "train", config)
    for arguments, message in (
        (
            [f"--config.dataset.data_dir={tmp_path}", "--workdir=s3://missing/a"],
            "error: s3://missing/a: there is no such bucket, folder or file",
        ),
        (
            ["--workdir=s4://bucket/a"],
            "error: s4://bucket/a: s4:// cannot be read: did you mean s3",
        ),
        (["--workdir=hf://datasets/user/name/a"], "agenet push RUN hf://USER/NAME publishes"),
        (
            ["--workdir=s3://bucket/a", "--processes=auto"],
            "--processes needs a work directory that",
        ),
        (["--workdir=s3://name:hidden@bucket/a"], "an address of s3:// cannot hold an account"),
    ):
        printed = run_program(*train, *arguments, fails=True)
        assert message in printed.splitlines()[-1]
        assert "Traceback" not in printed and "hidden" not in printed
    with pytest.raises(UserError, match="not prepared in s3://bucket/none: run  agenet prepare dr"):
        open_records("drawn_faces/faces", "s3://bucket/none")
    with pytest.raises(UserError, match="s3://bucket/runs: here only a path"):
        run_command(["folds", config, "--workdir=s3://bucket/runs"])


def test_a_bucket_that_denies(s3: Any) -> None:
    denied = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": "arn:aws:s3:::own/*",
    }
    s3.create_bucket(Bucket="own")
    s3.put_object(Bucket="own", Key="a/b", Body=b"1")
    policy = {"Version": "2012-10-17", "Statement": [denied]}
    s3.put_bucket_policy(Bucket="own", Policy=json.dumps(policy))
    with pytest.raises(
        UserError, match=r"s3://own/a/b: the store denies this \(.*\): set AWS_PROF"
    ):
        fetch("s3://own/a/b")
    with (
        pytest.raises(
            UserError, match=r"s3://own/c: the store denies this \(.*\): set AWS_PROFILE"
        ),
        open_workdir("s3://own/c"),
    ):
        pass


def test_only_one_creates_a_lease(s3: Any, capsys: pytest.CaptureFixture[str]) -> None:
    address = parse_address("s3://bucket/leased")
    store = open_store(address)
    assert Lease(store, address, "one")._create()
    assert not Lease(store, address, "two")._create()
    assert "no locks" not in capsys.readouterr().err


def test_no_connection(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(
        UserError, match="s3://bucket/a: no answer to use: Could not connect to the"
    ):
        fetch("s3://bucket/a")
    s3fs.S3FileSystem.clear_instance_cache()
