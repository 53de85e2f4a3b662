import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from unittest import mock

import cv2
import av
import numpy as np
import pytest
from PIL import Image

from agenet.cli import options
from agenet.cli.app import run_command
from agenet.errors import UserError, one_line_errors
from agenet.faces import detectors
from agenet.faces import display as display_module
from agenet.faces.detectors import create_detector
from agenet.faces.display import Display, check_window
from agenet.faces.encoding import VideoWriter
from agenet.faces.face import Detector
from agenet.faces.frames import Frame
from agenet.faces.video import open_video
from agenet.faces.webcam import run
from agenet.faces.yunet import BUNDLED_FILE
from tests.conftest import ROOT
from tests.faces.clips import read_all, write_clip
from tests.faces.test_pipeline import Camera, Fake

CLIPS = {  # frames and people, as a person sees them
    "classroom": (45, 4),
    "face-demographics-walking": (35, 2),
    "head-pose-face-detection-female-and-male": (56, 2),
}


class FakeScreen:
    """Shows nothing, remembers, and presses a key at the times that it is asked."""

    def __init__(self, keys: dict[int, str] | None = None) -> None:
        self.keys, self.asked, self.shown, self.waited = keys or {}, 0, [], 0.0

    def show(self, image: np.ndarray) -> None:
        self.shown.append(image)

    def key(self, seconds: float) -> str:
        time.sleep(min(seconds, 0.005))
        self.waited += seconds
        self.asked += 1
        return self.keys.get(self.asked, "")


class Ticks:
    """A clock that goes on by so many seconds each time it is asked."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def yunet(real_data: Path) -> Detector:
    return create_detector("yunet")


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Two seconds of a grey square."""
    writer = VideoWriter(tmp_path / "film.avi", 10.0)
    for number in range(20):
        writer.write(np.full((96, 128, 3), 99, np.uint8), number / 10)
    writer.close()
    return writer.path


@pytest.fixture(autouse=True)
def _no_handler_stays() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def status(*arguments: object, fake: Fake | None = None) -> int:
    """Runs the program; a fake takes the place of detector and predictor, or of the latter."""

    def find(name: str) -> Detector:
        return fake or create_detector(name)

    with (
        mock.patch.object(detectors, "create_detector", find),
        mock.patch.object(options, "load_predictor", return_value=fake or Fake()),
    ):
        try:
            with one_line_errors():
                run_command(["webcam", *map(str, arguments)])
        except SystemExit as end:
            print(end.code, file=sys.stderr)
            return 1
    return 0


def read_film(path: Path) -> list[Frame]:
    return read_all(open_video(str(path)))


# Films written.


def test_selected_faces(film: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, count in ((), 3), (("--max-faces=2",), 2), (("--min-size=9999",), 0):
        assert status(film, "--json=-", "--max-frames=1", *option, fake=Fake(3)) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert len(json.loads(line)["faces"]) == count


@pytest.mark.parametrize("clip", CLIPS)
def test_real_clips(
    real_data: Path, tmp_path: Path, clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, network = real_data / "media" / f"{clip}.gif", real_data / "models" / BUNDLED_FILE.name
    film, lines = tmp_path / "film.mp4", tmp_path / "film.jsonl"
    assert status(path, "--detector", network, "--output", film, "--json", lines) == 0
    frames, people = CLIPS[clip]
    results = [json.loads(line) for line in lines.read_text("ascii").splitlines()]
    assert [line["frame"] for line in results] == [*range(frames)]
    assert {len(line["faces"]) for line in results} == {people}
    assert {face["track"] for line in results for face in line["faces"]} == {*range(1, people + 1)}
    assert results[-1]["faces"][0]["age"] == pytest.approx(33)
    plain, drawn = read_film(path), read_film(film)
    assert len(drawn) == frames
    times = [[frame.seconds for frame in frames] for frames in (plain, drawn)]
    assert times[0] == pytest.approx(times[1], abs=0.001)
    differences = [
        np.abs(a.image.astype(int) - b.image).mean() for a, b in zip(plain, drawn, strict=True)
    ]
    assert min(differences) > 0.5 and max(differences) < 12  # Drawn upon, and the same film.
    summary = capsys.readouterr().err
    assert f"{frames} frames in" in summary
    assert f"{people} faces tracked, written to {film}" in summary


def test_lines_on_stdout(film: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(film, "--json", "-", "--max-frames", 3, fake=Fake(0)) == 0
    out, err = capsys.readouterr()
    results = [json.loads(line) for line in out.splitlines()]
    assert results == [{"frame": n, "seconds": n / 10, "faces": []} for n in range(3)]
    assert "3 frames in" in err and "0 faces tracked" in err


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_output_keeps_time(
    real_data: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = real_data / "cases" / "vfr.webm", tmp_path / f"out{suffix}"
    assert status(path, "--output", output, fake=Fake(1)) == 0
    frames = read_film(output)
    assert frames[-1].seconds + frames[-1].duration == pytest.approx(5.6, abs=0.01)
    summary = capsys.readouterr().err
    assert "20 frames in" in summary and "ends early" not in summary


@pytest.mark.parametrize(("step", "count"), [(5.0, 4), (1 / 480, 96)])
def test_time_lapse_and_slow_motion_do_not_end_early(
    tmp_path: Path, step: float, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_clip(tmp_path / "film.mkv", [step * number for number in range(count)])
    assert status(path, "--output", tmp_path / "out.mp4", fake=Fake(1)) == 0
    assert "ends early" not in capsys.readouterr().err
    times = [[frame.seconds for frame in read_film(tmp_path / n)] for n in ("film.mkv", "out.mp4")]
    assert times[0] == pytest.approx(times[1], abs=0.001)


def test_frames_that_avi_cannot_hold_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = [0, 0.1, 0.2, 0.3, 0.301, 0.302, 0.4, 0.5, 0.6]
    path = write_clip(tmp_path / "film.mp4", times)
    writer = VideoWriter(tmp_path / "out.avi", 10.0)
    summary = run(open_video(str(path)), Fake(), Fake().load, writer=writer)
    assert "; 2 frames are not in it, because AVI has one frame rate" in summary


def test_early_end_of_video_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)
    path = write_clip(tmp_path / "film.mkv", [n / 10 for n in range(20)], images=images)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert status(path, "--json", "-", fake=Fake()) == 0
    ending = capsys.readouterr().err
    assert re.search(r"film.mkv ends early, after (0\.\d|1\.\d) of 2\.0 s", ending)


def test_cut_gif_is_reported(tmp_path: Path) -> None:
    """A GIF states no length, but has an end."""
    path = tmp_path / "film.gif"
    images = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), np.uint8)
    frames = [Image.fromarray(image) for image in images]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    assert "ends early" not in run(open_video(str(path)), Fake(), Fake().load)
    path.write_bytes(path.read_bytes()[:-20])
    summary = run(open_video(str(path)), Fake(), Fake().load)
    assert summary.endswith(f"; {path} ends early: the file is cut short")


def test_names_do_not_control_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_clip(tmp_path / "film.mkv", [0, 0.1])
    path = path.rename(tmp_path / "a\x1b[2J\n\u202eb.mkv")
    output = tmp_path / "c\x1b]0;\n.mp4"
    assert status(path, "--output", output, fake=Fake()) == 0
    assert status(path, "--output", output, fake=Fake()) == 1
    assert status(f"{path}\x1b", "--json", "-", fake=Fake()) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 3
    assert not {"\x1b", "\u202e"} & set(err)


def test_existing_files_are_kept(
    tmp_path: Path, film: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output.mp4"
    output.write_bytes(b"kept")
    assert status(film, "--output", output) == 1
    assert "output.mp4 exists: name another file, or add --overwrite" in capsys.readouterr().err
    assert status(film, "--output", film, "--overwrite") == 1
    assert "is the video that is read" in capsys.readouterr().err
    assert output.read_bytes() == b"kept"
    assert status(film, "--output", output, "--overwrite", fake=Fake()) == 0
    assert len(read_film(output)) == 20


def test_mistakes_are_one_line(
    tmp_path: Path, film: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    for arguments, message in (
        (["--no-window"], "leaves nothing to do: add --output FILE or --json FILE"),
        ([film, "--max-frames", 0], "give 1 or more"),
        ([film, "--max-frames", "x"], "is not a valid integer"),
        ([film, "--output", "a.gif"], "name a file that ends in .mp4, .mov, .mkv, .avi"),
        ([film, "--output", tmp_path / "gone" / "a.mp4"], "no such folder, create it first"),
        ([film, "--output", "a.mp4", "--json", "a.mp4"], "name two"),
        ([film, "--json", "-", "--detector", "yunett"], "did you mean yunet"),
        ([tmp_path / "gone.mp4"], "does not exist: give a video file"),
        ([empty], "is empty"),
        (["97"], "camera 97 cannot be opened: this machine has"),
        ([film], "this machine has no display: give --output FILE or --json FILE"),
        (["--what"], "there is no option --what"),
    ):
        assert status(*arguments) == 1, arguments
        out, err = capsys.readouterr()
        assert err.startswith("error: ") and message in err and err.count("\n") == 1 and not out


class Broken(Fake):
    """Fails when it predicts."""

    def predict_faces(self, *_: object) -> list:
        raise UserError("no such weights")


def test_errors_of_the_network_are_one_line(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(film, "--output", tmp_path / "a.mp4", fake=Broken()) == 1
    assert capsys.readouterr().err == "error: no such weights\n"
    assert not (tmp_path / "a.mp4").exists()


def test_older_files_stay_until_something_can_be_written(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, lines = tmp_path / "out.mp4", tmp_path / "out.jsonl"
    writes = ["--output", output, "--json", lines, "--overwrite"]
    for path in (output, lines):
        path.write_bytes(b"old")
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(b"no film" * 100)
    before = set(tmp_path.iterdir())
    for arguments, fake in (
        ([damaged, *writes], Fake()),
        ([tmp_path / "gone.mp4", *writes], Fake()),
        ([film, "--detector", "yunett", *writes], None),
        ([film, *writes], Broken()),
    ):
        assert status(*arguments, fake=fake) == 1
    fails = mock.patch.object(options, "load_predictor", side_effect=UserError("no such weights"))
    with fails, pytest.raises(UserError, match="no such weights"):
        run_command(["webcam", str(film), "--detector=hog", *map(str, writes)])
    assert output.read_bytes() == lines.read_bytes() == b"old"
    assert set(tmp_path.iterdir()) == before
    capsys.readouterr()
    assert status(film, *writes, fake=Fake()) == 0
    assert len(read_film(output)) == len(lines.read_text().splitlines()) == 20


def test_camera_whose_network_fails_to_load_replaces_nothing(tmp_path: Path) -> None:
    def load() -> Fake:
        time.sleep(0.2)
        raise UserError("no such weights")

    output, lines = tmp_path / "out.avi", (tmp_path / "lines").open("w+")
    output.write_bytes(b"old")
    with lines, pytest.raises(UserError, match="no such weights"):
        run(Camera(500, 0.02), Fake(), load, writer=VideoWriter(output, 25.0), lines=lines)
    assert output.read_bytes() == b"old" and (tmp_path / "lines").read_bytes() == b""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_recording_is_readable(
    tmp_path: Path, film: Path, end: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    class Ends(Fake):
        def detect(self, image: np.ndarray) -> list:
            if self.detected == 8:
                os.kill(os.getpid(), end)
            time.sleep(0.05)
            return super().detect(image)

    output, lines, fake = tmp_path / "output.mp4", tmp_path / "lines", Ends()
    output.write_bytes(b"old")
    assert status(film, "--output", output, "--json", lines, "--overwrite", fake=fake) == 1
    assert capsys.readouterr().err == "interrupted\n130\n"
    assert 1 <= len(read_film(output)) < 20
    assert 1 <= len(lines.read_text().splitlines()) < 20


@pytest.mark.parametrize(
    ("redirection", "expected"),
    [
        ("--json=- >&-", "error: --json -: stdout is closed: name a file"),
        ("--json=- >/dev/full", "error: --json could not be written completely (No space left"),
        ("--json=a --max-frames=2 <&- >&-", "film.avi: 2 frames in"),
        ("--json=a --max-frames=2 2>&-", ""),
        ("--json=a --output=a.avi --max-frames=2 <&- >&- 2>&-", ""),
        ("--json=a --output=a.avi", "error: a.avi could not be written completely (File too large"),
        ("--json=a", "error: --json could not be written completely (File too large"),
    ],
)
def test_standard_streams_and_disks(
    film: Path, tmp_path: Path, redirection: str, expected: str
) -> None:
    code = """
import sys
from unittest import mock
from agenet.cli import main, options
from agenet.faces import detectors
fake = mock.Mock()
fake.detect.return_value = []
mock.patch.object(detectors, "create_detector", return_value=fake).start()
mock.patch.object(options, "load_predictor", return_value=fake).start()
main("webcam", "film.avi")
"""
    if "File too large" in expected:
        limit = 500 if ".avi" in redirection else 100
        code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, -1))\n{code}"
    done = subprocess.run(
        f'{sys.executable} -c "$CODE" {redirection}',
        shell=True,
        cwd=tmp_path,
        env=os.environ | {"CODE": code, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stdout
    assert done.stderr.startswith(expected) and done.stderr.count("\n") == (expected != "")
    assert done.returncode == expected.startswith("error")
    if not expected.startswith("error"):
        assert len((tmp_path / "a").read_text().splitlines()) == 2


@pytest.mark.parametrize("program", ["webcam", "predict"])
def test_starts_from_a_checkout_and_without_jax(program: str) -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['x', '/nowhere/film.mp4']\n"
        f"try: runpy.run_path('scripts/{program}.py', run_name='__main__')\n"
        "finally: print('jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stdout == "False\n"
    assert done.stderr.startswith("error: /nowhere/film.mp4") and done.stderr.count("\n") == 1


# What is shown.


def test_camera_shown_and_recorded(tmp_path: Path) -> None:
    camera, screen, lines = Camera(50, 0.02), FakeScreen(), (tmp_path / "lines").open("w+")
    writer = VideoWriter(tmp_path / "film.avi", 25.0)
    with lines:
        summary = run(camera, Fake(2), Fake(2).load, screen=screen, writer=writer, lines=lines)
        lines.seek(0)
        results = [json.loads(line) for line in lines]
    assert len(screen.shown) == len(results) > 25
    assert len(results[-1]["faces"]) == 2
    assert summary.endswith("; camera 0 returns no more frames")
    # As long as it took, whatever was dropped.
    assert len(read_film(writer.path)) == pytest.approx(len(results), abs=3)
    with av.open(writer.path) as film:
        assert film.duration / av.time_base == pytest.approx(results[-1]["seconds"], abs=0.1)
    assert any((image != camera.image).any() for image in screen.shown)


def test_camera_with_500_faces_is_shown() -> None:
    fake, screen = Fake(500, predicting=0.2), FakeScreen()
    began = time.thread_time()
    run(Camera(20, 0.05), fake, fake.load, screen=screen)
    assert len(screen.shown) > 5
    assert (time.thread_time() - began) / len(screen.shown) < 0.3
    assert fake.most <= 4


@pytest.mark.parametrize("live", [True, False])
def test_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = {5: "snapshot", 10: "pause", 15: "snapshot", 20: "pause", 40: "quit"}
    screen, camera, fake = FakeScreen(keys), Camera(10**6, 0.005, live), Fake(1)
    run(camera, fake, fake.load, screen=screen)
    assert screen.asked == 40 and camera.closed
    snapshots = sorted(tmp_path.iterdir())
    assert len(snapshots) == 2
    assert all(re.fullmatch(r"agenet-\d{8}-\d{6}-\d{3}\.png", path.name) for path in snapshots)
    assert [f"saved {path.name}" for path in snapshots] == capsys.readouterr().err.splitlines()
    saved = cv2.cvtColor(cv2.imread(str(snapshots[1])), cv2.COLOR_BGR2RGB)
    assert any((saved == image).all() for image in screen.shown)


def test_snapshot_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(display_module, "write_image", full)
    run(Camera(9, 0.01), Fake(), Fake().load, screen=FakeScreen({2: "snapshot", 6: "quit"}))
    assert capsys.readouterr().err == "not saved: No space left on device\n"


def test_video_is_shown_at_its_frame_rate() -> None:
    clock, screen = Ticks(0.0), FakeScreen()
    display = Display(screen, paced=True, clock=clock)
    image = np.zeros((48, 64, 3), np.uint8)
    for number in range(5):
        assert display.show(Frame(number, number / 10, image), image)
    assert screen.waited == pytest.approx(0.1 + 0.2 + 0.3 + 0.4)  # The clock stands still.
    # A machine that is slow by a second is not in a hurry afterwards.
    clock.now, screen.waited = 1.4, 0.0
    display.show(Frame(5, 0.5, image), image)
    display.show(Frame(6, 0.6, image), image)
    assert screen.waited == pytest.approx(0.1)


def test_pause_is_not_recorded(tmp_path: Path) -> None:
    class Pauses(Camera):
        def read(self) -> Frame | None:
            frame = super().read()
            late = 600.0 if frame and frame.number >= 10 else 0.0
            return frame and Frame(frame.number, frame.seconds + late, frame.image)

    writer = VideoWriter(tmp_path / "film.avi", 25.0)
    run(Pauses(20, 0.02), Fake(), Fake().load, writer=writer)
    assert len(read_film(writer.path)) < 20 + 25 + 2


def test_quit_while_camera_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agenet.faces.pipeline.POLL", 0.02)

    class Stalls(Camera):
        def read(self) -> Frame | None:
            if self.number == 3:
                for _ in range(1000):  # Until the user has left; ten seconds at most.
                    time.sleep(0.01 * (screen.asked < 9))
                return None
            return super().read()

    screen = FakeScreen({9: "quit"})
    summary = run(Stalls(9), Fake(), Fake().load, screen=screen)
    assert screen.asked == 9 and "no more pictures" not in summary
    assert (screen.shown[-1] != screen.shown[0]).any()  # It says that it waits.


# The window itself.


def test_no_window_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(UserError, match="no display: give --output FILE or --json FILE"):
        check_window()
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:            NONE\n")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match=r"no windows: pip uninstall .* opencv-python; or give"):
        check_window()


@pytest.fixture(scope="module")
def in_window() -> Callable[[str], str]:
    """Runs code under a virtual display, where OpenCV has windows.

    AGENET_WINDOW_PYTHON may name a Python with `opencv-python`; by default it is this one.
    """
    python = os.environ.get("AGENET_WINDOW_PYTHON", sys.executable)
    code = "import cv2; print(cv2.getBuildInformation())"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    if re.search(r"GUI: +NONE", found):
        pytest.skip("this OpenCV has no windows; AGENET_WINDOW_PYTHON may name a Python with one")
    if not which("xvfb-run"):
        pytest.skip("no xvfb-run, which stands in for a display")

    def in_window(code: str) -> str:
        done = subprocess.run(
            ["xvfb-run", "-a", python, "-c", PREPARE + code],
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    return in_window


# OpenCV's windows hang where PyAV is imported before it: agenet.faces sees to that.
PREPARE = """
import os, subprocess, time
import agenet.faces.decoding
import cv2
from agenet.cli import options
from agenet.cli.app import run_command
from agenet.errors import UserError, one_line_errors
from agenet.faces import detectors
from agenet.faces.display import Window, check_window
from agenet.faces.webcam import run
from tests.faces.clips import read_all, write_clip
from tests.faces.test_pipeline import Camera, Fake

check_window()
camera = Camera(10**6, 0.01)

class Scripted(Window):
    # What a user does once the window has been asked for keys so many times.
    deeds, asked = {}, 0
    def key(self, seconds):
        self.asked += 1
        deed = self.deeds.get(self.asked)
        if deed:
            deed()
        return super().key(seconds)

def press(key):
    # Nobody gives the window its focus here.
    find = ["xdotool", "search", "--name", "agenet", "windowfocus"]
    return lambda: subprocess.run([*find, "key", key], check=True)

def go():
    window = Scripted("agenet")
    run(camera, Fake(1), Fake(1).load, screen=window)
    return window.asked
"""


def test_window_closed_by_its_button(in_window: Callable[[str], str]) -> None:
    results = in_window("Scripted.deeds = {30: lambda: cv2.destroyWindow('agenet')}\nprint(go())")
    assert results == "30\n"


def test_keys_in_the_window(in_window: Callable[[str], str], tmp_path: Path) -> None:
    if not which("xdotool"):
        pytest.skip("no xdotool, which presses keys")
    results = in_window(
        f"os.chdir({str(tmp_path)!r})\n"
        "Scripted.deeds = {30: press('s'), 60: press('space'), 80: press('space'),"
        " 110: press('s'), 140: press('q')}\n"
        "print(go() < 200, camera.closed)"
    )
    end = results.splitlines()[-1]
    assert end == "True True" and len(list(tmp_path.glob("agenet-*.png"))) == 2


def test_display_that_cannot_be_opened(in_window: Callable[[str], str]) -> None:
    results = in_window(
        "os.environ['DISPLAY'] = ':9999'\n"
        "try: check_window()\n"
        "except UserError as error: print(error)"
    )
    assert results.startswith("this machine has no display: give --output")
